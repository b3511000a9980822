"""Fixtures on a real PostgreSQL: a server that the suite starts, or one that is named.

Without `DATABASE_URL` or `POSTGRES_HOST` in the environment an embedded server runs for as long as
the suite does. `.env` is not read: no test touches development data. The migrations build one
database; each test works on a copy, and is rolled back.
"""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from alembic import command
from alembic.config import Config
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from dev.postgres import PostgresError, embedded_postgres
from src.core import config
from src.core.config import ROOT, Settings, get_settings, load_settings
from src.db.base import Base
from src.db.session import Database, open_database
from src.db.setup import create_database, drop_database

pytest_plugins = ["tests.hanging"]
TEMPLATE_URL = "TEST_TEMPLATE_URL"
SERVER_VARIABLES = frozenset(
    name for name in Settings.model_fields if name.startswith(("DATABASE_", "POSTGRES_"))
)


def _isolate_environment() -> URL | None:
    """Let nothing but the tests decide on settings; return the server that was named, if any."""
    for name in Settings.model_fields.keys() - SERVER_VARIABLES:
        os.environ.pop(name, None)
    os.environ |= {"ENV": "test", "ENV_FILE": "", "LOG_LEVEL": "WARNING"}
    settings = load_settings()
    for name in SERVER_VARIABLES:
        os.environ.pop(name, None)
    return settings.database_url if settings.names_database else None


NAMED_SERVER = _isolate_environment()

from tests.client import connect  # noqa: E402 - what it imports reads the settings
from tests.fixtures import notes  # noqa: E402 - as above


def pytest_configure(config: pytest.Config) -> None:
    """Start the server and migrate, once: workers of pytest-xdist find the result."""
    _keep_ignored_signals_from_children()
    if hasattr(config, "workerinput"):
        return
    stack = ExitStack()
    config.add_cleanup(stack.close)
    try:
        server = NAMED_SERVER or make_url(stack.enter_context(embedded_postgres()).url("postgres"))
    except PostgresError as error:
        pytest.exit(str(error), returncode=1)
    url = server.set(database=f"test_{uuid4().hex[:12]}")
    asyncio.run(create_database(url))
    stack.callback(lambda: asyncio.run(drop_database(url)))
    command.upgrade(Config(ROOT / "alembic.ini", attributes={"url": url}), "head")
    asyncio.run(notes.create_tables(url))
    os.environ[TEMPLATE_URL] = url.render_as_string(hide_password=False)


def _keep_ignored_signals_from_children() -> None:
    """Let what tests start be stopped, though a shell has background jobs ignore Ctrl-C."""
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has not both
        if number and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # as good here, and not inherited


@asynccontextmanager
async def migrated_database() -> AsyncGenerator[URL]:
    """Copy the migrated database; cheaper than to migrate again."""
    template = make_url(os.environ[TEMPLATE_URL])
    url = template.set(database=f"{template.database}_{uuid4().hex[:12]}")
    await create_database(url, template=str(template.database))
    try:
        yield url
    finally:
        await drop_database(url)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without settings, in a project without a `.env`."""
    for name in (*Settings.model_fields, "ENV_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(config, "DEV_ENV_FILE", tmp_path / ".data/dev.env")
    return monkeypatch


@pytest.fixture(scope="session")
def settings() -> Settings:
    return get_settings()


@pytest.fixture(scope="session")
def app(settings: Settings) -> FastAPI:
    return _application(settings)


@pytest.fixture
def own_app(settings: Settings) -> FastAPI:
    """An application of the test's own, to add routes to."""
    return _application(settings)


def _application(settings: Settings) -> FastAPI:
    """The service, and the notes of the tests."""
    from main import create_application  # noqa: PLC0415 - it reads the settings when imported

    app = create_application(settings)
    app.include_router(notes.router, prefix="/api/v1")
    return app


@pytest.fixture(scope="session")
async def engine() -> AsyncGenerator[AsyncEngine]:
    async with migrated_database() as url:
        engine = create_async_engine(url, poolclass=NullPool)
        yield engine
        await engine.dispose()


@pytest.fixture
async def database(engine: AsyncEngine) -> AsyncGenerator[Database]:
    """Sessions that may commit, inside one transaction that never does.

    They share a connection, so requests of one test must come one after the other; take
    `own_database` for a test that is about concurrency or about commits themselves.
    """
    async with engine.connect() as connection:
        transaction = await connection.begin()
        yield Database.bound_to(connection, join_transaction_mode="create_savepoint")
        await transaction.rollback()


@pytest.fixture
async def db(database: Database) -> AsyncGenerator[AsyncSession]:
    async with database.transaction() as session:
        yield session


@pytest.fixture
async def client(app: FastAPI, database: Database) -> AsyncGenerator[AsyncClient]:
    async with connect(app, database) as client:
        yield client


@pytest.fixture
async def fresh_url() -> AsyncGenerator[URL]:
    """A migrated database that no other test sees, to change the tables of."""
    async with migrated_database() as url:
        yield url


@pytest.fixture(scope="session")
async def _committed_url() -> AsyncGenerator[URL]:
    async with migrated_database() as url:
        yield url


@pytest.fixture
async def own_url(_committed_url: URL) -> AsyncGenerator[URL]:
    """A database to commit to; its tables are emptied afterwards."""
    yield _committed_url
    async with (
        open_database(_committed_url, pool_size=1) as database,
        database.transaction() as session,
    ):
        for table in (*reversed(Base.metadata.sorted_tables), notes.Note.__table__):
            await session.execute(table.delete())


@pytest.fixture
async def own_database(own_url: URL) -> AsyncGenerator[Database]:
    async with open_database(own_url, pool_size=10) as database:
        yield database


@pytest.fixture
async def own_client(app: FastAPI, own_database: Database) -> AsyncGenerator[AsyncClient]:
    async with connect(app, own_database) as client:
        yield client
