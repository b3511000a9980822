"""The service's own tasks, from the request to the end."""

from collections.abc import Iterator

import pytest
from httpx import AsyncClient
from sqlalchemy import func, select

from src.core.config import Settings
from src.db.models.item import Item
from src.db.session import Database
from src.tasks import jobs
from src.tasks.engine import relay
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.relay import open_relay
from tests.test_tasks.workers import eventually, over, unsent, working

IMPORTS = "/api/v1/item-imports/"
CSV = {"Content-Type": "text/csv"}


@pytest.fixture
def employer(broker: TaskBroker) -> Iterator[TaskBroker]:
    """The test's broker, with the job on it; it is on a queue that other tests use too."""
    broker.declare_actor(jobs.import_items)
    broker.flush("default")
    yield broker
    broker.flush("default")


async def followed(client: AsyncClient, location: str) -> dict[str, object]:
    async def is_over() -> dict[str, object] | None:
        answer = await client.get(location)
        return None if "Retry-After" in answer.headers else answer.json()

    body: dict[str, object] = await eventually(is_over, "the end of the task")
    return body


async def test_an_import_is_accepted_tracked_and_done(
    committing_client: AsyncClient,
    committing_database: Database,
    employer: TaskBroker,
    queue_settings: Settings,
) -> None:
    rows = "".join(f"Lamp {number}\n" for number in range(250))
    async with open_relay(queue_settings, employer), working(employer):
        accepted = await committing_client.post(IMPORTS, content=f'name\n{rows}""\n', headers=CSV)
        body = await followed(committing_client, accepted.headers["Location"])

    assert accepted.status_code == 202
    assert body["status"] == "succeeded"
    assert (body["done"], body["total"], body["attempts"]) == (250, 250, 1)
    result = body["result"]
    assert isinstance(result, dict)
    assert (result["created"], result["rejected"]) == (250, 0)
    imported = (await committing_client.get(f"{IMPORTS}{result['import_id']}")).json()
    assert (imported["done"], imported["total"]) == (250, 250)
    async with committing_database.reads() as session:
        assert await session.scalar(select(func.count(Item.id))) == 250


async def test_requests_do_not_wait_for_a_broker_that_is_away(
    committing_client: AsyncClient,
    committing_database: Database,
    employer: TaskBroker,
    *,
    nobody_there: TaskBroker,
    queue_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What they ask for is done once it is back."""
    monkeypatch.setattr(relay, "POLL_SECONDS", 0.05)
    async with open_relay(queue_settings, nobody_there):
        for _ in range(5):
            accepted = await committing_client.post(IMPORTS, content="name\nLamp\n", headers=CSV)
            assert accepted.status_code == 202
        assert await unsent(committing_database) == 5
    async with open_relay(queue_settings, employer), working(employer):
        await over(committing_database, accepted.json()["task_id"])
