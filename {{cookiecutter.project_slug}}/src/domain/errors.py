"""The tree of errors that a rule of the domain may raise.

Each kind says what went wrong in terms of the domain; `src.core.exceptions` gives each its HTTP
status. `code` names the problem for programs, `str(error)` explains it to people.
"""

from typing import ClassVar


class DomainError(Exception):
    code: ClassVar[str]
    title: ClassVar[str]


class NotFoundError(DomainError):
    code = "not-found"
    title = "Not found"


class ConflictError(DomainError):
    """The state of things does not allow what was asked."""

    code = "conflict"
    title = "Conflict"


class StaleVersionError(DomainError):
    """The caller decided on a version that is no longer the current one."""

    code = "stale-version"
    title = "Changed in the meantime"
