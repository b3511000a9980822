"""Cache tags of models: `__cache_tags__ = ("users", "user:{id}")`.

A change of a row through the ORM invalidates the tags of its old and its new state after the commit,
wherever a cache is open. A bulk statement such as `update(User)` does not report which rows it
changes: add `invalidate()` or `@invalidate_cache`.
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


def invalidate_on_model_changes() -> None:
    """Register the listeners for all sessions."""
    event.listen(Session, "before_flush", _invalidate_old_tags)
    event.listen(Session, "after_flush", _invalidate_new_tags)


def _invalidate_old_tags(session: Session, _context: object, _instances: object) -> None:
    if current_cache() is not None:
        with session.no_autoflush:
            rows = chain(session.dirty, session.deleted)
            _invalidate(session, {tag for row in rows for tag in _tags(row, _stored_values(row))})


def _invalidate_new_tags(session: Session, _context: object) -> None:
    if current_cache() is not None:
        rows = chain(session.new, session.dirty)
        _invalidate(session, {tag for row in rows for tag in _tags(row, _loaded_values(row))})


def _invalidate(session: Session, tags: set[str]) -> None:
    cache = current_cache()
    if cache is not None and tags:
        invalidate_after_commit(session, cache.invalidate, (), tags)


def _tags(row: object, values: Mapping[str, Any]) -> Iterator[str]:
    texts = {name: format_value(value) for name, value in values.items()}
    for template in getattr(row, "__cache_tags__", ()):
        if all(name in texts for name in _placeholders(template)):
            yield template.format_map(texts)


def _placeholders(template: str) -> list[str]:
    return [name for _, name, _, _ in _parse(template) if name]


def _tag_columns(row: object) -> list[str]:
    templates = getattr(row, "__cache_tags__", ())
    return [name for template in templates for name in _placeholders(template)]


def _stored_values(row: object) -> dict[str, Any]:
    """Return the values in the database, before the flush."""
    state = inspect(row, raiseerr=True)
    values: dict[str, Any] = {}
    for name in _tag_columns(row):
        history = state.attrs[name].history
        if known := [*history.deleted, *history.unchanged]:
            values[name] = known[0]
        else:  # the attribute has expired, or was set before it was loaded
            column = getattr(type(row), name)
            is_row = [
                key == value
                for key, value in zip(state.mapper.primary_key, state.identity, strict=True)
            ]
            values[name] = state.session.scalar(select(column).where(*is_row))
    return values


def _loaded_values(row: object) -> dict[str, Any]:
    """Return the values in memory. Load nothing: a cascade may have deleted the row."""
    loaded = inspect(row, raiseerr=True).dict
    return {name: loaded[name] for name in _tag_columns(row) if name in loaded}
