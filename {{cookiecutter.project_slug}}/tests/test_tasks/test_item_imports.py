"""An import of items, from the request to the end of its task."""

from httpx import AsyncClient
from sqlalchemy import func, select

from src.core.config import Settings
from src.db.models.item import Item
from src.db.session import Database
from src.tasks import jobs
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.relay import open_relay
from tests.fixtures.environment import API
from tests.test_tasks.workers import wait_for_end, working

IMPORTS = f"{API}/item-imports/"
CSV = {"Content-Type": "text/csv"}


async def test_an_import_succeeds(
    committing_client: AsyncClient,
    committing_database: Database,
    broker: TaskBroker,
    queue_settings: Settings,
) -> None:
    broker.declare_actor(jobs.import_items)
    broker.flush("default")  # other tests use this queue too
    rows = "".join(f"Lamp {number}\n" for number in range(250))
    async with open_relay(queue_settings, broker), working(broker):
        accepted = await committing_client.post(IMPORTS, content=f'name\n{rows}""\n', headers=CSV)
        await wait_for_end(committing_database, accepted.json()["task_id"])
    broker.flush("default")
    task = (await committing_client.get(accepted.headers["Location"])).json()
    imported = (await committing_client.get(f"{IMPORTS}{task['result']['import_id']}")).json()

    assert (accepted.status_code, task["status"]) == (202, "succeeded")
    assert (task["done"], task["total"], task["attempts"]) == (250, 250, 1)
    assert (task["result"]["created"], task["result"]["rejected"]) == (250, 0)
    assert (imported["done"], imported["total"]) == (250, 250)
    async with committing_database.reads() as session:
        assert await session.scalar(select(func.count(Item.id))) == 250
