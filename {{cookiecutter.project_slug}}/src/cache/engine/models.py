"""Models that say which tags their rows have: `__cache_tags__ = ("users", "user:{id}")`.

Whoever changes a row through the ORM, be it an endpoint, a task or a script, invalidates the tags
of the old and the new state once the change is committed. A statement such as `update(User)` does
not tell which rows it changes: invalidate what they carry with `@invalidate_cache`.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from string import Formatter
from typing import Any

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import Session

from src.cache.engine.after_commit import invalidate_after_commit
from src.cache.engine.cache import current_cache
from src.cache.engine.keys import format_value

_parse = Formatter().parse


def watch_models() -> None:
    """Let every session invalidate what it outdates, from now on."""
    event.listen(Session, "before_flush", _invalidate_old)
    event.listen(Session, "after_flush", _invalidate_new)


def _invalidate_old(session: Session, _context: object, _instances: object) -> None:
    if current_cache() is not None:
        with session.no_autoflush:
            changed = chain(session.dirty, session.deleted)
            _invalidate(session, {tag for row in changed for tag in _tags(row, _before(row))})


def _invalidate_new(session: Session, _context: object) -> None:
    if current_cache() is not None:
        changed = chain(session.new, session.dirty)
        _invalidate(session, {tag for row in changed for tag in _tags(row, _after(row))})


def _invalidate(session: Session, tags: set[str]) -> None:
    cache = current_cache()
    if cache is not None and tags:
        invalidate_after_commit(session, cache.invalidate, (), tags)


def _tags(row: object, values: Mapping[str, Any]) -> Iterator[str]:
    texts = {name: format_value(value) for name, value in values.items()}
    for template in getattr(row, "__cache_tags__", ()):
        if all(name in texts for name in _names_in(template)):
            yield template.format_map(texts)


def _names_in(template: str) -> list[str]:
    return [name for _, name, _, _ in _parse(template) if name]


def _names_of(row: object) -> list[str]:
    return [name for each in getattr(row, "__cache_tags__", ()) for name in _names_in(each)]


def _before(row: object) -> dict[str, Any]:
    """Return what the database has."""
    state = inspect(row, raiseerr=True)
    values: dict[str, Any] = {}
    for name in _names_of(row):
        history = state.attrs[name].history
        if known := [*history.deleted, *history.unchanged]:
            values[name] = known[0]
        else:  # expired, or set without being read before
            column = getattr(type(row), name)
            is_it = [
                key == value
                for key, value in zip(state.mapper.primary_key, state.identity, strict=True)
            ]
            values[name] = state.session.scalar(select(column).where(*is_it))
    return values


def _after(row: object) -> dict[str, Any]:
    """Return what is known now; a row that a cascade has deleted has nothing to load."""
    loaded = inspect(row, raiseerr=True).dict
    return {name: loaded[name] for name in _names_of(row) if name in loaded}
