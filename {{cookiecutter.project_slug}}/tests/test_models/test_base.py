from uuid import UUID, uuid4

import pytest
from sqlalchemy import Column, MetaData, String, select
from sqlalchemy.ext.asyncio import AsyncSession

from src.db.base import NAMING_CONVENTION, Base, TableNameMixin, TimestampMixin, UUIDMixin
from src.db.models.idempotency import IdempotencyKey
from src.db.session import Database, ReadOnlySessionError
from src.domain.errors import InvalidCursorError
from src.repositories.base import Repository
from src.utils.text import snake_case
from tests.fixtures.notes import Note, NoteNotFoundError, NoteRepository


class SampleOrder(Base, UUIDMixin, TableNameMixin, TimestampMixin):
    # Not in Base.metadata, which `alembic check` compares with the database.
    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    __table_args__ = {"prefixes": ["TEMPORARY"]}  # noqa: RUF012 - the type that SQLAlchemy declares
    name = Column(String, index=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Order", "order"),
        ("OrderLine", "order_line"),
        ("HTTPCall", "http_call"),
        ("V2Order", "v2_order"),
    ],
)
def test_tables_are_named_after_classes(name: str, expected: str) -> None:
    assert snake_case(name) == expected


async def test_a_model_needs_only_base_classes_and_columns(db: AsyncSession) -> None:
    connection = await db.connection()
    await connection.run_sync(SampleOrder.__table__.create)  # type: ignore[attr-defined]
    line = SampleOrder(name="Lamp")
    db.add(line)
    await db.flush()

    assert SampleOrder.__tablename__ == "sample_order"
    assert {index.name for index in SampleOrder.__table__.indexes} == {"ix_sample_order_name"}  # type: ignore[attr-defined]
    assert isinstance(line.id, UUID)
    assert line.created_at.tzinfo is not None


class TestRepository:
    async def test_pages_sorted_by_a_column_follow_each_other(self, db: AsyncSession) -> None:
        repository = NoteRepository(db)
        for text in ("b", "a", "c"):
            await repository.add(Note(text=text))

        first, cursor = await repository.paginate_by(Note.text, select(Note), limit=2)
        last, end = await repository.paginate_by(Note.text, select(Note), limit=2, cursor=cursor)

        assert [note.text for note in (*first, *last)] == ["a", "b", "c"]
        assert end is None
        with pytest.raises(InvalidCursorError):
            await repository.paginate_by(Note.text, select(Note), limit=2, cursor="x")

    async def test_get_for_update_reloads_the_row(self, committing_database: Database) -> None:
        async with committing_database.transaction() as session:
            note = await NoteRepository(session).add(Note(text="Lamp"))
        async with committing_database.transaction() as session:
            repository = NoteRepository(session)
            assert await repository.get(note.id) is not None
            async with committing_database.transaction() as other:
                (await NoteRepository(other).get_for_update(note.id) or note).text = "Light"

            found = await repository.get_or_raise(note.id, NoteNotFoundError, for_update=True)

            assert (found.text, found.version) == ("Light", 2)

    @pytest.mark.parametrize("for_update", [False, True])
    async def test_get_or_raise_reports_the_missing_id(
        self, db: AsyncSession, *, for_update: bool
    ) -> None:
        missing = uuid4()

        with pytest.raises(NoteNotFoundError, match=f"There is no note {missing}."):
            await NoteRepository(db).get_or_raise(missing, NoteNotFoundError, for_update=for_update)

    def test_needs_a_model_with_an_id(self) -> None:
        with pytest.raises(TypeError, match="needs a model with UUIDMixin, not Idempot"):

            class Wrong(Repository[IdempotencyKey]):  # type: ignore[type-var]
                model = IdempotencyKey

    async def test_pages_are_newest_first_and_the_last_has_no_cursor(
        self, db: AsyncSession
    ) -> None:
        db.add_all(Note(text=text) for text in "abcd")
        await db.flush()
        repository = NoteRepository(db)

        first, cursor = await repository.paginate(select(Note), limit=2)
        last, end = await repository.paginate(select(Note), limit=2, cursor=cursor)
        skipped, _ = await repository.paginate(select(Note), limit=2, offset=1)

        assert [note.text for note in first] == ["d", "c"]
        assert [note.text for note in last] == ["b", "a"]
        assert end is None
        assert [note.text for note in skipped] == ["c", "b"]


async def test_a_read_only_session_refuses_to_write(database: Database) -> None:
    async with database.reads() as session:
        session.add(Note(text="Lamp"))
        with pytest.raises(ReadOnlySessionError):
            await session.flush()
