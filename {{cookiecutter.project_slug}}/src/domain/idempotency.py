"""What a key may not be used for that makes a request safe to send twice."""

from src.domain.errors import ConflictError, DomainError


class IdempotencyKeyInUseError(ConflictError):
    code = "idempotency-key-in-use"
    title = "Idempotency-Key is in use"

    def __init__(self) -> None:
        super().__init__("The first request with this key has not ended yet.")


class IdempotencyKeyReusedError(DomainError):
    code = "idempotency-key-reused"
    title = "Idempotency-Key was used before"

    def __init__(self) -> None:
        super().__init__("The first request with this key was another one.")
