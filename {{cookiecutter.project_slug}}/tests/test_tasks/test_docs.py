"""The snippets of docs/tasks.md run."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select

from src.db.models.task import OutboxMessage
from src.db.session import Database
from src.tasks import broker, jobs
from tests.fixtures.client import connect
from tests.fixtures.pages import python_blocks
from tests.fixtures.tasks import run_task

Names = dict[str, Any]


@pytest.fixture
def welcomed() -> list[str]:
    """The users who received a welcome."""
    return []


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, welcomed: list[str]) -> Iterator[Names]:
    """Run every block in order, in one module; `src.tasks.jobs` has its actors."""

    class WelcomeService:
        @staticmethod
        async def send(_db: object, user_id: object) -> None:
            welcomed.append(str(user_id))

    actors = dict(broker.actors)
    names: Names = {"__name__": "docs", "WelcomeService": WelcomeService}
    for block in python_blocks("tasks.md"):
        exec(block, names)  # noqa: S102 - our own page
        for name, value in names.items():
            if isinstance(value, dramatiq.Actor):
                monkeypatch.setattr(jobs, name, value, raising=False)
    yield names
    broker.actors = actors


async def test_enqueued_task_is_in_the_outbox_and_can_be_polled(
    names: Names, fresh_app: FastAPI, database: Database
) -> None:
    fresh_app.include_router(names["router"])
    async with connect(fresh_app, database) as client:
        welcome = await client.post(f"/users/{uuid4()}/welcome")
        accepted = await client.post("/users/newsletter", params={"count": 2})
        task = await client.get(accepted.headers["Location"])
    async with database.reads() as db:
        messages = await db.scalar(select(func.count()).select_from(OutboxMessage))

    assert (welcome.status_code, accepted.status_code, messages) == (202, 202, 2)
    assert (task.json()["status"], task.headers["Retry-After"]) == ("queued", "1")


async def test_tasks_run(
    names: Names, welcomed: list[str], fresh_app: FastAPI, database: Database
) -> None:
    fresh_app.include_router(names["router"])
    async with connect(fresh_app, database) as client:
        await names["test_welcome"](client, database)
    result = await run_task(database, names["send_newsletter"], 2)
    assert welcomed == ["01a206cd-4e23-76df-a1d1-88a6fbc79a53"]
    assert result == {"sent": 2}
