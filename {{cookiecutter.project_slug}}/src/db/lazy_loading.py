"""Raises a readable error when code reads a relationship or attribute that is not loaded.

Async code cannot run a query when it reads an attribute.
"""

from sqlalchemy import event
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.orm import ORMExecuteState, RelationshipProperty, Session
from sqlalchemy.util.concurrency import in_greenlet


class NotLoadedError(MissingGreenlet):
    pass


@event.listens_for(Session, "do_orm_execute")
def _refuse_lazy_loading(query: ORMExecuteState) -> None:
    is_lazy = query.is_relationship_load or query.is_column_load
    if is_lazy and not in_greenlet() and query.session.get_bind().dialect.is_async:
        raise NotLoadedError(_explain(query))


def _explain(query: ORMExecuteState) -> str:
    path = query.loader_strategy_path if query.is_relationship_load else None
    if path is not None and isinstance(relationship := path[-1], RelationshipProperty):
        name = str(relationship)  # such as `Author.books`
        return (
            f"`{name}` is not loaded: add `.options(selectinload({name}))` to the query, or"
            f' `await db.refresh(entity, ["{relationship.key}"])` before you read it.'
        )
    model = query.bind_mapper.class_.__name__ if query.bind_mapper else "The entity"
    options = getattr(query.statement, "_compile_options", None)  # private, so it may be missing
    names = sorted(getattr(options, "_only_load_props", None) or ())
    attribute, arguments = (f".{names[0]}", f', ["{names[0]}"]') if len(names) == 1 else ("", "")
    return (
        f"`{model}{attribute}` is not loaded: it is deferred, or has expired after a rollback or an"
        f" SQL expression. Call `await db.refresh(entity{arguments})` before you read it."
    )
