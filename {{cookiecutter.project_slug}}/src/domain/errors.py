"""Errors of domain rules, which become error responses.

`code` is for programs; `title` and `message` are for people. The base class determines the HTTP
status: see `src.api.problems`.
"""

from typing import ClassVar


class DomainError(Exception):
    code: ClassVar[str]
    title: ClassVar[str]
    message: ClassVar[str]  # a template: `OrderNotFoundError(id=order_id)` fills in `{id}`

    def __init__(self, message: str | None = None, /, **values: object) -> None:
        super().__init__(self.message.format(**values) if message is None else message)


class UnauthenticatedError(DomainError):
    """The request has no valid credentials. The message does not say why: the log does."""

    code = "unauthenticated"
    title = "Not authenticated"
    message = "Send valid credentials."


class ForbiddenError(DomainError):
    """The principal may not do this."""

    code = "forbidden"
    title = "Forbidden"


class MissingScopeError(ForbiddenError):
    code = "missing-scope"
    title = "Missing scope"
    message = "This needs the scope {scope}."

    def __init__(self, scope: str) -> None:
        super().__init__(scope=scope)
        self.scope = scope


class InvalidValueError(DomainError):
    """A value of the request breaks a rule."""

    code = "invalid-value"
    title = "Invalid value"


class TooManyRequestsError(DomainError):
    """The caller has used up a quota."""

    code = "too-many-requests"
    title = "Too many requests"
    message = "Try again in {seconds} s."

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds=seconds)
        self.seconds = seconds


class OverloadedError(DomainError):
    """The process has too much work of this kind."""

    code = "overloaded"
    title = "Overloaded"
    message = "The service is busy. Try again later."


class NotFoundError(DomainError):
    code = "not-found"
    title = "Not found"
    message = "There is no record with the ID {id}."


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


class InvalidCursorError(DomainError):
    code = "invalid-cursor"
    title = "Invalid cursor"
    message = "Use the cursor of a page with the same sort order."


class StaleVersionError(DomainError):
    """The caller based a change on an outdated version."""

    code = "stale-version"
    title = "Version conflict"
    message = "The current version is {version}."
