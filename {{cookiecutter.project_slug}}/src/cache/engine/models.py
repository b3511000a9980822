"""Cache tags of models: `__cache_tags__ = ("users", "user:{id}")`.

A change of a row through the ORM invalidates the tags of its old and its new state after the commit,
wherever a cache is open. A bulk statement such as `update(User)`, SQL text that writes and names
the table, and `ON DELETE CASCADE` do not report which rows they change. They invalidate the tags of
all rows of the model. Triggers and `ON UPDATE CASCADE` need `invalidate()`.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from string import Formatter
from typing import Any

from sqlalchemy import Delete, TextClause, UpdateBase, event, inspect, select
from sqlalchemy.orm import Mapper, ORMExecuteState, Session

from src.cache.engine.after_commit import invalidate_after_commit
from src.cache.engine.cache import current_cache, tag_key
from src.cache.engine.keys import check_strings, format_value, parse_template
from src.db.base import Base

_parse = Formatter().parse
# Not `SELECT ... FOR UPDATE`.
_writes = re.compile(r"\b(insert|(?<!for )(?<!key )update|delete|merge|truncate)\b", re.IGNORECASE)


def invalidate_on_model_changes() -> None:
    """Register the listeners for all sessions and models."""
    event.listen(Mapper, "mapper_configured", _check_tags)
    event.listen(Session, "before_flush", _invalidate_old_tags)
    event.listen(Session, "after_flush", _invalidate_new_tags)
    event.listen(Session, "persistent_to_deleted", _invalidate_deleted_row)
    event.listen(Session, "do_orm_execute", _invalidate_all_tags)


def _check_tags(mapper: Mapper[Any], model: type) -> None:
    """Raises TypeError if a placeholder of a tag is not a column."""
    templates = getattr(model, "__cache_tags__", ())
    check_strings(model.__name__, __cache_tags__=templates)
    for template in templates:
        parse_template(template, model.__name__, "column", mapper.column_attrs.keys())


def _invalidate_old_tags(session: Session, _context: object, _instances: object) -> None:
    if current_cache() is not None:
        with session.no_autoflush:
            rows = chain(session.dirty, session.deleted)
            _invalidate(session, {tag for row in rows for tag in _tags(row, _stored_values(row))})


def _invalidate_new_tags(session: Session, _context: object) -> None:
    if current_cache() is not None:
        rows = chain(session.new, session.dirty)
        _invalidate(session, {tag for row in rows for tag in _tags(row, _loaded_values(row))})
        # A change of a parent's collection changes rows during the flush.
        moved = {tag for row in session.dirty for tag in _tags(row, _replaced_values(row))}
        _invalidate(session, moved)


def _invalidate_deleted_row(session: Session, row: object) -> None:
    """Invalidate the tags of a row, which may have been an orphan, and of rows deleted with it."""
    if current_cache() is not None:
        _invalidate(session, set(_tags(row, _loaded_values(row))))
        mapper = inspect(row, raiseerr=True).mapper
        # The ORM deletes the row's rows in association tables without an event.
        associations = {each.secondary for each in mapper.relationships} - {None}
        _invalidate_tables(session, _dependent_tables(set(mapper.tables)) | associations)


def _invalidate_all_tags(execution: ORMExecuteState) -> None:
    """Invalidate the tags of all rows of the table that a bulk statement changes."""
    statement: Any = execution.statement
    statement = getattr(statement, "element", statement)  # of `from_statement()`
    changed: set[Any] = set()
    if current_cache() is None:
        return
    if isinstance(statement, UpdateBase):
        changed = {statement.table}
    elif isinstance(statement, TextClause) and _writes.search(statement.text):
        words = set(re.findall(r"\w+", statement.text.lower()))
        changed = {table for table in _all_tables() if table.name.lower() in words}
    if isinstance(statement, (Delete, TextClause)):
        changed = changed | _dependent_tables(changed)
    _invalidate_tables(execution.session, changed)


def _invalidate_tables(session: Session, changed: set[Any]) -> None:
    cache = current_cache()
    if cache is None or not changed:
        return
    templates = {
        tag
        for mapper in Base.registry.mappers
        for tag in getattr(mapper.class_, "__cache_tags__", ())
        # A row of an association table changes the collections of both models.
        if not changed.isdisjoint(
            [*mapper.tables, *(each.secondary for each in mapper.relationships)]
        )
    }
    tags = {tag for tag in templates if not _placeholders(tag)}
    patterns = {tag_key(re.sub(r"{[^{}]*}", "*", tag)) for tag in templates - tags}
    invalidate_after_commit(session, cache.invalidate, patterns, tags)


def _all_tables() -> list[Any]:
    """Return the tables of models, and association tables."""
    mapped: Any = chain.from_iterable(mapper.tables for mapper in Base.registry.mappers)
    return [
        table
        for metadata in {table.metadata for table in mapped}
        for table in metadata.tables.values()
    ]


def _dependent_tables(changed: set[Any]) -> set[Any]:
    """Return the tables in which PostgreSQL changes rows when it deletes rows of the given ones."""
    found: set[Any] = set()
    while changed:
        changed = {
            table
            for table in _all_tables()
            for key in table.foreign_keys
            if (key.ondelete or "").upper().startswith(("CASCADE", "SET"))
            and any(map(key.references, changed))
        } - found
        found |= changed
    return found


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


def _replaced_values(row: object) -> dict[str, Any]:
    """Return the values in memory, each before its change in this flush."""
    attributes = inspect(row, raiseerr=True).attrs
    before = {name: attributes[name].history.deleted for name in _tag_columns(row)}
    return {**_loaded_values(row), **{name: old[0] for name, old in before.items() if old}}
