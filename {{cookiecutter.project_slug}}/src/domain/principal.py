"""Who calls, and what they may do.

Add the scopes of your endpoints to `Scope`, and those that a role has to `ROLES`. An endpoint
declares what it needs with `require(Scope.…)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from string import punctuation
from typing import ClassVar
from urllib.parse import quote

_VISIBLE = punctuation.replace("%", "")


class Scope(StrEnum):
    """What a principal may do: a noun and a verb."""

    # % if cookiecutter.example
    ITEMS_READ = "items:read"
    ITEMS_WRITE = "items:write"
    # % endif
    # % if cookiecutter.cache_backend != "none"
    CACHE_WRITE = "cache:write"
    # % endif
    # % if cookiecutter.scheduler
    SCHEDULER_READ = "scheduler:read"
    # % endif
    # % if cookiecutter.__queue
    TASKS_READ = "tasks:read"
    # % endif
    # % if cookiecutter.__users
    USERS_READ = "users:read"
    USERS_WRITE = "users:write"
    # % endif
    # Add yours here, such as ORDERS_READ = "orders:read".


class Role(StrEnum):
    ADMIN = "admin"
    MEMBER = "member"


ROLES: Mapping[Role, frozenset[Scope]] = {
    Role.ADMIN: frozenset(Scope),
    Role.MEMBER: frozenset(
        [
            # % if cookiecutter.example
            Scope.ITEMS_READ,
            Scope.ITEMS_WRITE,
            # % endif
            # % if cookiecutter.__queue
            Scope.TASKS_READ,
            # % endif
            # Add yours here.
        ]
    ),
}


class PrincipalKind(StrEnum):
    API_KEY = "api-key"
    # % if cookiecutter.__oidc
    TOKEN = "token"  # noqa: S105 - an access token of the identity provider
    # % endif
    # % if cookiecutter.__users
    USER = "user"
    # % endif
    DEVELOPER = "developer"  # a request without credentials, in development and tests


@dataclass(frozen=True)
class Principal:
    identifies_caller: ClassVar = True

    kind: PrincipalKind
    id: str  # unique among the principals of this kind
    scopes: frozenset[Scope]

    def __str__(self) -> str:
        """Return `kind:id`. All characters but visible ASCII are percent-encoded.

        The id may come from another system, and must not add a line to a log or a header.
        """
        return f"{self.kind}:{quote(self.id, _VISIBLE, errors='surrogatepass')}"
