import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Integer, Text, bindparam, func, select
from sqlalchemy.dialects.postgresql import TSQUERY

from src.db.models.item import SEARCH_CONFIG, SEARCH_DOCUMENT, Item
from src.db.reader import Query
from src.domain.item import ItemSort, ItemStatus
from src.repositories.base import Repository
from src.schemas.item import ItemResponse

# Only columns with an index. IDs sort by creation time.
_SORT_COLUMNS = {
    ItemSort.NEWEST: Item.id,
    ItemSort.OLDEST: Item.id,
    ItemSort.NAME: Item.name,
    ItemSort.NAME_DESCENDING: Item.name,
}
_FILTERS = {
    "status": Item.status == bindparam("status"),
    # The primary key contains the time of creation, so no other index is necessary.
    "created_from": Item.id >= bindparam("created_from"),
    "created_before": Item.id < bindparam("created_before"),
}

MAX_TOTAL = 10_001
MAX_WORDS = 10  # in a search
MAX_MATCHES = 1000
# Words, and hosts, emails and numbers like 1.5.
_WORD = re.compile(r"[^\s\x00-/:-@\[-`{-~]+(?:[./@][^\s\x00-/:-@\[-`{-~]+){0,3}")


@dataclass(frozen=True)
class ItemFilter:
    status: ItemStatus | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None

    def values(self) -> dict[str, Any]:
        """Return the values for _FILTERS."""
        return {
            "status": self.status,
            "created_from": _first_id(self.created_from),
            "created_before": _first_id(self.created_before),
        }


def _first_id(moment: datetime | None) -> UUID | None:
    """Return the smallest UUIDv7 of this millisecond."""
    if moment is None:
        return None
    milliseconds = max(0, int(moment.timestamp() * 1000))
    return UUID(int=milliseconds << 80 | 0x7000_8000_0000_0000_0000)


class ItemRepository(Repository[Item]):
    model = Item

    async def list_page(
        self, wanted: ItemFilter, *, sort: ItemSort, cursor: str | None, offset: int, limit: int
    ) -> tuple[list[ItemResponse], str | None]:
        """Raises InvalidCursorError."""
        return await self.read_page(
            ItemResponse,
            wanted.values(),
            _FILTERS,
            by=_SORT_COLUMNS[sort],
            descending=sort.startswith("-"),
            limit=limit,
            cursor=cursor,
            offset=offset,
        )

    async def add_all(self, items: Sequence[Item]) -> None:
        """Add up to 1,000 items with one INSERT. Their IDs have the order of `items`."""
        self.session.add_all(items)
        await self.session.flush()

    async def count(self, wanted: ItemFilter) -> int:
        """Count at most MAX_TOTAL items: counting all of a large table takes seconds."""
        return await self.count_rows(wanted.values(), _FILTERS, limit=MAX_TOTAL)

    async def search(self, text: str, *, offset: int, limit: int) -> list[ItemResponse]:
        """Return items with all words of `text`, best match first. The last word may be a prefix.

        Only MAX_MATCHES items are ranked: the rank of an item with a long text is expensive.
        """
        return await self.fetch(_SEARCH, words=prefix_query(text), offset=offset, limit=limit)


def _search() -> Query[ItemResponse]:
    phrases = func.to_tsquery(SEARCH_CONFIG, bindparam("words", type_=Text)).cast(Text)
    # `ann@example` would be a phrase, which the index cannot find alone.
    query = func.replace(phrases, "<->", "&").cast(TSQUERY)
    found = select(Item, SEARCH_DOCUMENT).where(SEARCH_DOCUMENT.op("@@")(query)).cte()
    # Without MATERIALIZED, the limit makes PostgreSQL prefer a scan of the table to the index.
    matches = select(found.prefix_with("MATERIALIZED")).limit(MAX_MATCHES).subquery().c
    columns = [matches[name] for name in ItemResponse.model_fields]
    statement = select(*columns).order_by(
        func.ts_rank(matches.search, query).desc(), matches.id.desc()
    )
    offset, limit = (bindparam(name, type_=Integer) for name in ("offset", "limit"))
    return Query(ItemResponse, statement.offset(offset).limit(limit))


_SEARCH = _search()


def prefix_query(text: str) -> str:
    """Convert the words, each once, to a `tsquery`. Quotes prevent words from being operators."""
    words = _WORD.findall(text)
    unique = [f"'{word}'" for word in {word.lower(): word for word in reversed(words)}.values()]
    if words and len(words[-1].encode()) > 1:  # too many words start with the same letter
        unique[0] += ":*"
    return " & ".join(unique[:MAX_WORDS])
