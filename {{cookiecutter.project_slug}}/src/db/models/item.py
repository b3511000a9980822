from sqlalchemy import CheckConstraint, Column, Computed, Index, Text
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from src.db.base import Base, TableNameMixin, TimestampMixin, UUIDMixin
from src.domain.item import ItemStatus

# `simple` uses words as they are. `english`, for example, stems words and drops stop words.
SEARCH_CONFIG = "simple"
_WEIGHTED_WORDS = (
    f"setweight(to_tsvector('{SEARCH_CONFIG}', name), 'A') || "
    f"setweight(to_tsvector('{SEARCH_CONFIG}', coalesce(description, '')), 'B')"
)


class Item(Base, UUIDMixin, TableNameMixin, TimestampMixin):
    # % if cookiecutter.cache_backend != "none"
    __cache_tags__ = ("items", "item:{id}")

    # % endif
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    status: Mapped[ItemStatus] = mapped_column(default=ItemStatus.DRAFT)
    version: Mapped[int] = mapped_column()

    __table_args__ = (
        Column("search", TSVECTOR, Computed(_WEIGHTED_WORDS, persisted=True), nullable=False),
        Index("ix_item_search", "search", postgresql_using="gin"),
        Index("ix_item_name_id", "name", "id"),  # for `sort=name`
        Index("ix_item_status_id", "status", "id"),  # for pages of one status
        CheckConstraint("length(name) > 0", name="name_not_empty"),
    )
    # SQLAlchemy increments `version` with each UPDATE, and refuses to update an outdated version.
    # `search` is not an attribute; otherwise every INSERT and UPDATE would fetch it.
    __mapper_args__ = {"version_id_col": version, "exclude_properties": ["search"]}


SEARCH_DOCUMENT = Item.__table__.c.search
