import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import select

from src.core.config import Settings
from src.db.models.item import Item
from src.db.models.item_import import ItemImport
from src.db.session import Database
from src.domain.item_import import MAX_REJECTIONS, Progress
from src.repositories.retention import delete_expired
from src.schemas.item_import import ItemImportResponse
from src.services.item_import import ItemImportService
from tests.fixtures.statements import recorded

TIMEOUT_SECONDS = 60


async def start(database: Database, content: bytes) -> UUID:
    async with database.transaction() as db:
        return (await ItemImportService.start(db, content)).id


async def work(database: Database, import_id: UUID, *, limit: int) -> Progress:
    """Import all rows as a worker does, with each batch in its own transaction."""
    while True:
        async with database.transaction() as db:
            progress = await ItemImportService.import_batch(db, import_id, limit=limit)
        if progress.is_finished:
            return progress


async def run(database: Database, content: bytes, *, limit: int = 100) -> ItemImportResponse:
    import_id = await start(database, content)
    await work(database, import_id, limit=limit)
    return await ItemImportService.get(database.reader, import_id)


async def names(database: Database) -> list[str]:
    async with database.reads() as reads:
        return list(await reads.scalars(select(Item.name).order_by(Item.id)))


def lamps(number: int) -> bytes:
    return "\n".join(["name", *(f"Lamp {n}" for n in range(number))]).encode()


async def test_a_bad_row_does_not_stop_the_others(database: Database) -> None:
    """All rejected rows are counted, and the first ones are listed."""
    rows = [
        "name,description",
        "Lamp,Brass",
        " ,No name",
        ",No name either",
        "L" * 201 + ",Long",
        "Lamp,Brass\0",
        "Lamp,Brass,12",
        "Chair,",
        *MAX_REJECTIONS * [" ,No name"],
    ]

    done = await run(database, "\n".join(rows).encode(), limit=2)

    assert await names(database) == ["Lamp", "Chair"]
    assert (done.total, done.done, done.rejected) == (107, 107, 105)
    assert len(done.rejections) == MAX_REJECTIONS
    assert [each.model_dump() for each in done.rejections[:5]] == [
        {"row": 3, "detail": "name: String should have at least 1 character"},
        {"row": 4, "detail": "name: Field required"},
        {"row": 5, "detail": "name: String should have at most 200 characters"},
        {"row": 6, "detail": "description: NUL is not allowed"},
        {"row": 7, "detail": "extra column: Extra inputs are not permitted"},
    ]


async def test_a_killed_batch_is_imported_again(committing_database: Database) -> None:
    import_id = await start(committing_database, lamps(5))

    async def die_after_a_batch() -> None:
        async with committing_database.transaction() as db:
            await ItemImportService.import_batch(db, import_id, limit=2)
            imported.set()
            await asyncio.Event().wait()

    async with committing_database.transaction() as db:
        await ItemImportService.import_batch(db, import_id, limit=2)
    imported = asyncio.Event()
    task = asyncio.create_task(die_after_a_batch())
    await imported.wait()
    task.cancel()
    await asyncio.wait([task])
    assert await names(committing_database) == ["Lamp 0", "Lamp 1"]

    await work(committing_database, import_id, limit=2)

    assert await names(committing_database) == [f"Lamp {n}" for n in range(5)]


async def test_concurrent_workers_import_each_row_once(committing_database: Database) -> None:
    import_id = await start(committing_database, lamps(200))

    async with asyncio.timeout(TIMEOUT_SECONDS):
        seen = await asyncio.gather(
            *(work(committing_database, import_id, limit=7) for _ in range(4))
        )

    assert seen == [Progress(done=200, total=200, created=200, rejected=0, is_finished=True)] * 4
    assert await names(committing_database) == [f"Lamp {n}" for n in range(200)]


async def test_a_batch_needs_three_statements(committing_database: Database) -> None:
    import_id = await start(committing_database, lamps(600))
    with recorded(committing_database) as sent:
        async with committing_database.transaction() as db:
            await ItemImportService.import_batch(db, import_id, limit=500)

    assert sent == ["BEGIN", "SELECT", "INSERT", "UPDATE", "COMMIT"]


async def test_old_imports_are_deleted(database: Database, settings: Settings) -> None:
    """After TASK_HISTORY_DAYS, like tasks."""
    too_old = datetime.now(UTC) - timedelta(days=settings.TASK_HISTORY_DAYS, minutes=1)
    import_id = await start(database, lamps(1))
    async with database.transaction() as db:
        db.add(ItemImport(content=b"", total=1, updated_at=too_old))

    await delete_expired(database.transaction, settings, "TASK_HISTORY_DAYS")

    async with database.reads() as reads:
        assert list(await reads.scalars(select(ItemImport.id))) == [import_id]
