"""The errors that a rule of the domain may raise.

`code` names the problem for programs, `title` and `message` explain it to people. The class decides
the HTTP status: see `src.api.problems`.
"""

from typing import ClassVar


class DomainError(Exception):
    code: ClassVar[str]
    title: ClassVar[str]
    message: ClassVar[str]  # a template: `OrderNotFoundError(id=order_id)` fills in `{id}`

    def __init__(self, message: str | None = None, /, **values: object) -> None:
        super().__init__(self.message.format(**values) if message is None else message)


class NotFoundError(DomainError):
    code = "not-found"
    title = "Not found"
    message = "There is nothing with the key {id}."


class ConflictError(DomainError):
    """The current state does not allow the request."""

    code = "conflict"
    title = "Conflict"


class IdempotencyKeyInUseError(ConflictError):
    code = "idempotency-key-in-use"
    title = "Idempotency-Key in use"
    message = "The first request with this key is still being processed."


class IdempotencyKeyReusedError(DomainError):
    code = "idempotency-key-reused"
    title = "Idempotency-Key reused"
    message = "This key was already used with a different request."


class StaleVersionError(DomainError):
    """The caller decided on a version that is no longer the current one."""

    code = "stale-version"
    title = "Version conflict"
    message = "The current version is {version}."
