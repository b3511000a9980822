"""Declarative base and mixins."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import DateTime, Enum, MetaData, func
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

from src.utils.text import snake_case

# A later migration can drop a constraint by its name; the server names unnamed ones.
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    # Fetch what the server computed with RETURNING: reading `updated_at` after an UPDATE would
    # otherwise need a SELECT, which async code cannot send implicitly.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - SQLAlchemy declares it so


def text_enum(kind: type[StrEnum], *, name: str) -> Enum:
    """Text with a CHECK: a migration cannot remove a value from a native ENUM."""
    return Enum(
        kind,
        native_enum=False,
        create_constraint=True,
        length=16,
        name=name,
        values_callable=lambda members: [member.value for member in members],
    )


class UUIDMixin:
    """A UUIDv7 key, made by the server: new rows are added at the end of the index."""

    id: Mapped[UUID] = mapped_column(
        primary_key=True, server_default=func.uuidv7(monotonic=True), sort_order=-10
    )


class TableNameMixin:
    """Name the table after the class: `OrderLine` is stored in `order_line`."""

    @declared_attr.directive
    @classmethod
    def __tablename__(cls) -> str:
        return snake_case(cls.__name__)


class TimestampMixin:
    """By the clock of the server, with time zone."""

    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), sort_order=10
    )
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=func.now(), sort_order=10
    )
