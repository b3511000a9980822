"""Errors of the header `Idempotency-Key`."""

from src.domain.errors import ConflictError, DomainError


class IdempotencyKeyInUseError(ConflictError):
    code = "idempotency-key-in-use"
    title = "Idempotency-Key in use"
    message = "The first request with this key is still being processed."


class IdempotencyKeyReusedError(DomainError):
    code = "idempotency-key-reused"
    title = "Idempotency-Key reused"
    message = "This key was already used with a different request."
