"""Differences between models and database that Alembic alone does not see."""

import asyncio
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from itertools import count, pairwise
from pathlib import Path
from uuid import UUID

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, CheckConstraint, ForeignKey, select, text
from sqlalchemy.orm import Mapped, mapped_column

from src.core.config import ROOT
from src.db import autogenerate
from src.db.base import Base, UUIDMixin
from src.db.session import open_database


class Status(StrEnum):
    OPEN = "open"
    CLOSED = "closed"


class LongerStatus(StrEnum):
    OPEN = "open"
    CLOSED = "closed"
    WAITING = "waiting for the approval of a manager"


class Alembic:
    """Runs commands in a thread, since Alembic starts an event loop."""

    def __init__(self, url: URL, folder: Path) -> None:
        self._config = Config(ROOT / "alembic.ini", attributes={"url": url})
        self._config.set_main_option("path_separator", "newline")
        self._config.set_main_option("version_locations", f"{ROOT}/alembic/versions\n{folder}")
        self._folder = folder

    async def check(self) -> None:
        await asyncio.to_thread(command.check, self._config)

    async def migrate(self) -> str:
        """Generate a migration, apply it, undo it and apply it again. Return its text."""
        folder = str(self._folder)
        name = f"step {len(list(self._folder.iterdir()))}"
        script = await asyncio.to_thread(
            command.revision, self._config, name, autogenerate=True, version_path=folder
        )
        for name, revision in (("upgrade", "head"), ("downgrade", "-1"), ("upgrade", "head")):
            await asyncio.to_thread(getattr(command, name), self._config, revision)
        await self.check()
        return await asyncio.to_thread(Path(script.path).read_text, "utf-8")  # type: ignore[union-attr]


@pytest.fixture
def alembic(fresh_url: URL, tmp_path: Path) -> Alembic:
    return Alembic(fresh_url, tmp_path)


Define = Callable[..., None]
NUMBERS = count()  # SQLAlchemy warns about classes of the same name


@pytest.fixture
def define() -> Iterator[Define]:
    """Define a model, in place of an earlier one with the same table."""
    before = set(Base.metadata.tables)

    def define(name: str, *, schema: str | None = None, **attributes: object) -> None:
        for table in [table for table in Base.metadata.tables.values() if table.name == name]:
            Base.metadata.remove(table)
        arguments = *attributes.pop("arguments", ()), {"schema": schema}  # type: ignore[misc]
        attributes = {"__tablename__": name, "__table_args__": arguments, **attributes}
        type(f"SampleModel{next(NUMBERS)}", (Base, UUIDMixin), attributes)

    yield define
    for name in set(Base.metadata.tables) - before:
        Base.metadata.remove(Base.metadata.tables[name])


def annotated(**annotations: object) -> dict[str, object]:
    return {"__annotations__": annotations}


async def test_a_new_member_of_an_enum_is_migrated(
    alembic: Alembic, define: Define, fresh_url: URL
) -> None:
    define("sample_order", **annotated(status=Mapped[Status]))
    await alembic.migrate()
    define("sample_order", **annotated(status=Mapped[Status], before=Mapped[Status | None]))
    await alembic.migrate()

    define("sample_order", **annotated(status=Mapped[LongerStatus], before=Mapped[Status | None]))
    script = await alembic.migrate()

    assert "ck_sample_order_status" in script
    assert "ck_sample_order_before" not in script
    order = Base.metadata.tables["sample_order"]
    async with open_database(fresh_url, pool_size=1) as database, database.transaction() as db:
        await db.execute(order.insert().values(status=LongerStatus.WAITING))
        assert await db.scalar(select(order.c.status)) == LongerStatus.WAITING


async def test_an_older_column_is_widened_for_a_longer_member(
    alembic: Alembic, define: Define, fresh_url: URL
) -> None:
    define("sample_order", **annotated(status=Mapped[Status]))
    await alembic.migrate()
    async with open_database(fresh_url, pool_size=1) as database, database.transaction() as db:
        await db.execute(text("ALTER TABLE sample_order ALTER status TYPE varchar(16)"))

    await alembic.check()
    define("sample_order", **annotated(status=Mapped[LongerStatus]))
    script = await alembic.migrate()

    assert "type_=sa.String()" in script


async def test_a_changed_condition_is_migrated(alembic: Alembic, define: Define) -> None:
    def shelf(condition: str, **columns: object) -> None:
        checks = [CheckConstraint(condition, name="size_in_range")]
        define("sample_shelf", arguments=checks, **annotated(size=Mapped[int], **columns))

    shelf("size BETWEEN 1 AND 10")
    await alembic.migrate()
    shelf("size BETWEEN 1 AND 20")
    await alembic.migrate()
    shelf("size BETWEEN 1 AND 20 AND depth <> '1'", depth=Mapped[str | None])
    await alembic.migrate()


async def test_a_schema_is_created_and_others_are_ignored(
    alembic: Alembic, define: Define, fresh_url: URL
) -> None:
    define("sample_customer", schema="sample", **annotated(status=Mapped[Status]))
    customer_id = mapped_column(ForeignKey("sample.sample_customer.id"))
    define("sample_invoice", customer_id=customer_id, **annotated(customer_id=Mapped[UUID]))

    script = await alembic.migrate()

    assert 'CREATE SCHEMA "sample"' in script
    async with open_database(fresh_url, pool_size=1) as database, database.transaction() as db:
        await db.execute(text("CREATE SCHEMA unrelated CREATE TABLE month (id int)"))
    await alembic.check()


async def test_a_kept_table_is_dropped_when_its_line_is_deleted(
    alembic: Alembic,
    define: Define,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = tmp_path_factory.mktemp("kept") / "kept_tables.txt"
    monkeypatch.setattr(autogenerate, "KEPT_TABLES", kept)
    kept.write_text("# kept\nsample_order\n", "utf-8")
    define("sample_order", **annotated(status=Mapped[Status]))
    assert 'op.create_table("sample_order"' in (await alembic.migrate()).replace("\n        ", "")
    Base.metadata.remove(Base.metadata.tables["sample_order"])

    await alembic.check()
    kept.unlink()

    assert 'op.drop_table("sample_order")' in await alembic.migrate()


async def test_tables_are_dropped_before_those_that_they_refer_to(
    alembic: Alembic, define: Define
) -> None:
    names = [f"sample_{number}" for number in range(5)]
    define(names[-1])
    for name, other in pairwise(names):
        parent_id = mapped_column(ForeignKey(f"{other}.id"))
        define(name, parent_id=parent_id, **annotated(parent_id=Mapped[UUID]))
    await alembic.migrate()
    for name in names:
        Base.metadata.remove(Base.metadata.tables[name])

    script = await alembic.migrate()

    assert re.findall(r'drop_table\("(\w+)"', script) == names
