"""`Reader` and `Query`: rows for responses, read by the driver."""

from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import (
    Enum,
    Float,
    Numeric,
    bindparam,
    case,
    func,
    insert,
    literal,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from src.db.connection import DatabaseUnavailableError
from src.db.reader import Query, Reader, rows_in_session
from src.db.session import Database, SessionUseError, open_database
from src.domain.errors import InvalidCursorError
from tests.fixtures.notes import Note, NoteNotFoundError, NoteRepository, NoteResponse
from tests.fixtures.statements import recorded
from tests.pgbouncer import needs_pgbouncer


class Color(StrEnum):
    RED = "red"


class Values(BaseModel):
    color: Color
    data: dict[str, int]
    price: Decimal
    ratio: float


VALUES = Query(
    Values,
    select(
        literal("red", Enum(Color, native_enum=False, values_callable=list)).label("color"),
        type_coerce(bindparam("data", type_=JSONB), JSONB).label("data"),
        literal(Decimal("1.50"), Numeric(4, 2)).label("price"),
        literal(0.5, Float()).label("ratio"),
    ),
)


class Text(BaseModel):
    text: str


BY_TEXT = Query(Text, select(Note.text).where(Note.text.in_(bindparam("texts", expanding=True))))


@pytest.fixture
def reader(committing_database: Database) -> Reader:
    return committing_database.reader


@pytest.fixture
async def texts(committing_database: Database) -> str:
    async with committing_database.transaction() as session:
        session.add_all(Note(text=text) for text in "bacd")
    return "bacd"


async def test_types_convert_values_and_rows_like_in_a_session(
    committing_database: Database, reader: Reader
) -> None:
    values = {"data": {"size": 2}}

    by_driver = await reader.rows(VALUES, values)
    async with committing_database.reads() as session:
        in_session = await rows_in_session(session, VALUES, values)

    assert [tuple(row) for row in by_driver] == [tuple(row) for row in in_session]
    assert VALUES.parse(by_driver) == [
        Values(color=Color.RED, data={"size": 2}, price=Decimal("1.50"), ratio=0.5)
    ]


@pytest.mark.usefixtures("texts")
async def test_a_list_of_values_needs_a_session(reader: Reader) -> None:
    rows = await reader.rows(BY_TEXT, {"texts": ["a", "b"]})

    assert {each.text for each in BY_TEXT.parse(rows)} == {"a", "b"}


async def test_a_missing_or_invalid_value_is_an_error(reader: Reader) -> None:
    query = Query(Text, select(Note.text).where(Note.version == bindparam("version")))

    with pytest.raises(StatementError, match="'version'"):
        await reader.rows(query, {})
    with pytest.raises(StatementError):
        await reader.rows(query, {"version": "one"})


async def test_a_query_that_takes_too_long_is_not_repeated(committing_database: Database) -> None:
    query = Query(Text, select(case((func.pg_sleep(60).is_(None), ""), else_="").label("text")))
    engine = committing_database.writes.kw["bind"]
    url = engine.url.update_query_dict({"command_timeout": "0.1"})
    async with open_database(url, pool_size=1) as database:
        with recorded(database) as sent, pytest.raises(DatabaseUnavailableError):
            await database.reader.rows(query, {})

    assert sent == ["SELECT"]


async def test_a_query_that_waits_for_a_lock_is_not_repeated(
    committing_database: Database,
) -> None:
    engine = committing_database.writes.kw["bind"]
    url = engine.url.update_query_dict({"lock_timeout": "100ms"})
    async with (
        open_database(url, pool_size=1) as database,
        committing_database.transaction() as session,
    ):
        await session.execute(text("LOCK TABLE test.note"))
        with recorded(database) as sent, pytest.raises(DatabaseUnavailableError):
            await NoteRepository(database.reader).read(NoteResponse, uuid4())

    assert sent == ["SELECT"]


@needs_pgbouncer
async def test_a_pooler_may_change_the_server_connection(pooler_url: Any) -> None:
    async with (
        open_database(pooler_url, pool_size=5) as one,
        open_database(pooler_url, pool_size=5) as two,
    ):
        for database in (one, two) * 5:
            assert await database.reader.rows(VALUES, {"data": {}})


@pytest.mark.parametrize(
    "statement",
    [
        select(Note),
        select(insert(Note).values(text="Lamp").returning(Note.text).cte().c.text),
        update(Note).values(text="Lamp").returning(Note.text),
    ],
    ids=["entity", "insert", "update"],
)
def test_a_query_selects_columns_and_changes_nothing(statement: Any) -> None:
    with pytest.raises(TypeError, match="columns, not entities"):
        Query(Text, statement)


def test_a_query_refuses_a_column_that_is_no_field() -> None:
    """It would get lost, and a field with a default would have that."""

    class Counted(BaseModel):
        number: int = 0

    with pytest.raises(TypeError, match=r"`Counted` has no field `count`"):
        Query(Counted, select(func.count()).select_from(Note))


class TestRepository:
    async def test_reads_only_the_columns_of_the_schema(
        self, db: AsyncSession, database: Database
    ) -> None:
        note = await NoteRepository(db).add(Note(text="Lamp"))

        for source in (db, database.reader):
            found = await NoteRepository(source).read(NoteResponse, note.id)
            assert found == NoteResponse(id=note.id, text="Lamp", version=1)
        with pytest.raises(NoteNotFoundError):
            await NoteRepository(db).read_or_raise(NoteResponse, uuid4(), NoteNotFoundError)

    async def test_finds_columns_by_the_alias_of_a_field(self, db: AsyncSession) -> None:
        class Aliased(BaseModel):
            model_config = ConfigDict(extra="forbid")

            body: str = Field(validation_alias="text")
            links: list[str] = []

        note = await NoteRepository(db).add(Note(text="Lamp"))
        repository = NoteRepository(db)

        assert await repository.read(Aliased, note.id) == Aliased(text="Lamp")
        assert await repository.read_page(Aliased, limit=1) == ([Aliased(text="Lamp")], None)

    async def test_refuses_a_field_that_is_not_a_column(self, db: AsyncSession) -> None:
        class Wrong(BaseModel):
            author: str

        with pytest.raises(TypeError, match=r"`Wrong\.author` is not a column of `SampleNote`"):
            await NoteRepository(db).read(Wrong, uuid4())

    async def test_entities_need_a_session(self, reader: Reader) -> None:
        with pytest.raises(SessionUseError, match="instead of `DbReader`"):
            await NoteRepository(reader).get(uuid4())

    @pytest.mark.usefixtures("texts")
    async def test_filters_may_be_called_like_the_parameters_of_a_page(
        self, reader: Reader
    ) -> None:
        names = ("limit", "offset", "last_value", "last_id")
        filters = {name: Note.text != bindparam(name, type_=Note.text.type) for name in names}
        wanted = dict.fromkeys(names, "no such text")
        repository = NoteRepository(reader)

        found, cursor = await repository.read_page(Text, wanted, filters, limit=1)
        others, _ = await repository.read_page(Text, wanted, filters, limit=1, cursor=cursor)

        assert found
        assert others
        assert await repository.count_rows(wanted, filters, limit=2) == 2

    @pytest.mark.usefixtures("texts")
    async def test_pages_follow_each_other(self, reader: Reader) -> None:
        repository = NoteRepository(reader)

        newest, cursor = await repository.read_page(Text, limit=3)
        oldest, end = await repository.read_page(Text, limit=3, cursor=cursor)
        first, after = await repository.read_page(Text, by=Note.text, descending=False, limit=2)
        rest, _ = await repository.read_page(
            Text, by=Note.text, descending=False, limit=2, cursor=after
        )

        assert "".join(note.text for note in (*newest, *oldest)) == "dcab"
        assert "".join(note.text for note in (*first, *rest)) == "abcd"
        assert end is None
        with pytest.raises(InvalidCursorError):
            await repository.read_page(Text, by=Note.text, limit=2, cursor=after)

    @pytest.mark.usefixtures("texts")
    async def test_filters_apply_if_they_have_a_value(self, reader: Reader) -> None:
        repository = NoteRepository(reader)
        filters = {"text": Note.text == bindparam("text"), "after": Note.text > bindparam("after")}

        page, _ = await repository.read_page(Text, {"text": None, "after": "b"}, filters, limit=9)

        assert [note.text for note in page] == ["d", "c"]
        assert await repository.count_rows({"text": "a", "after": None}, filters) == 1
        assert await repository.count_rows() == 4
        assert await repository.count_rows(limit=3) == 3
