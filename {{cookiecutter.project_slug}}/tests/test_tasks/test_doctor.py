"""The checks of `python cli.py doctor` for the broker and the workers."""

import pytest
from sqlalchemy import URL

from src.core.config import Settings
from src.doctor import CheckError, CheckSkippedError
from src.tasks import doctor
from src.tasks.doctor import check_broker, check_worker
from src.tasks.engine.brokers.base import TaskBroker
from tests.test_tasks.conftest import Server
from tests.test_tasks.workers import eventually, settings_for, working


async def test_the_queues_and_a_running_worker_are_found(
    queue_settings: Settings, broker: TaskBroker, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "declared", broker)
    deployed = queue_settings.model_copy(update={"ENV": "production"})

    assert await check_broker(queue_settings) == f"{queue}: 0 waiting, 0 dead"
    with pytest.raises(CheckSkippedError, match="Start one with"):
        await check_worker(queue_settings)
    with pytest.raises(CheckError, match="Start one with"):
        await check_worker(deployed)

    async def is_found() -> bool:
        try:
            return await check_worker(deployed) == "At least one is running."
        except CheckError:
            return False

    async with working(broker):
        await eventually(is_found, "the worker")


async def test_an_unavailable_broker_is_explained(
    server: Server, queue: str, committing_url: URL
) -> None:
    settings = settings_for(committing_url, server.via(1).variables(queue))

    with pytest.raises(CheckError, match=r" is unavailable: .*[^.]\. Start it, or correct "):
        await check_broker(settings)
    with pytest.raises(CheckSkippedError, match="It needs the broker"):
        await check_worker(settings)
