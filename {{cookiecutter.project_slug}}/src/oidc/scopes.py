"""The scopes of a token's owner, from the claims that `OIDC_SCOPES_CLAIM` names."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from src.domain.principal import ROLES, Role, Scope

Claims = Mapping[str, Any]

_DEFAULTS: dict[str, frozenset[Scope]] = {
    **{role.value: ROLES[role] for role in Role},
    **{scope.value: frozenset([scope]) for scope in Scope},
}


def names_in(claims: Claims, paths: Iterable[str]) -> frozenset[str]:
    """Return the names of scopes, roles and groups in the claims with these names or paths."""
    return frozenset(name for path in paths for name in _names(_find(claims, path)))


def scopes_of(names: Iterable[str], scopes_map: Mapping[str, str]) -> frozenset[Scope]:
    """Return the scopes that these names mean. Names that mean nothing here are ignored.

    `scopes_map` has the scopes and roles of a name, with spaces between them. Other names are those
    of scopes and roles themselves.
    """
    own: set[str] = set()
    for name in names:
        own.update(scopes_map[name].split() if name in scopes_map else [name])
    return frozenset().union(*(_DEFAULTS.get(name, frozenset()) for name in own))


def _find(claims: Claims, path: str) -> object:
    """Return the claim with this name, or at this path: names of claims may contain dots too."""
    if path in claims:
        return claims[path]
    parts = path.split(".")
    for number in range(1, len(parts)):
        nested = claims.get(".".join(parts[:number]))
        if isinstance(nested, dict):
            found = _find(nested, ".".join(parts[number:]))
            if found is not None:
                return found
    return None


def _names(claim: object) -> Iterator[str]:
    """Yield the words of a text, the elements of a list, or the keys of an object."""
    if isinstance(claim, str):
        yield from claim.split()
    elif isinstance(claim, list | dict):
        yield from (name for name in claim if isinstance(name, str))
