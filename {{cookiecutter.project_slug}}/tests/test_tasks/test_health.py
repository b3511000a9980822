"""What a worker tells of itself over HTTP."""

import asyncio
import os
import re
import signal
import time
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from src.core.config import Settings
from src.db.session import Database
from src.tasks.engine import health
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.maintenance import HEARTBEATS
from tests.proxy import Proxy
from tests.test_tasks.workers import (
    LIMIT,
    WorkerProcess,
    enqueue,
    eventually,
    queue_of,
    send,
    working,
)


async def ask(settings: Settings, broker: TaskBroker, path: str) -> httpx.Response:
    app = health.create_app(settings, broker)

    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": state}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
            return await client.get(path)


def number(metrics: str, name: str, **labels: str) -> float:
    wanted = ",".join(f'{key}="{value}"' for key, value in labels.items())
    label = re.escape("{" + wanted + "}") if wanted else ""
    found = re.search(rf"^{name}{label} (\S+)$", metrics, re.MULTILINE)
    assert found, metrics
    return float(found[1])


async def test_ready_means_that_broker_and_database_answer(
    queue_settings: Settings, broker: TaskBroker
) -> None:
    response = await ask(queue_settings, broker, "/health/ready")

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"status": "ok", "checks": {"broker": "ok", "database": "ok"}}


async def test_without_a_broker_it_is_not_ready(
    queue_settings: Settings, nobody_there: TaskBroker
) -> None:
    response = await ask(queue_settings, nobody_there, "/health/ready")

    assert response.status_code == 503
    assert response.json() == {
        "status": "unavailable",
        "checks": {"broker": "unavailable", "database": "ok"},
    }


async def test_without_a_database_it_is_not_ready(
    remote_settings: Settings, broker: TaskBroker, line: Proxy
) -> None:
    await line.stop()
    response = await ask(remote_settings, broker, "/health/ready")

    assert response.status_code == 503
    assert response.json()["checks"] == {"broker": "ok", "database": "unavailable"}


async def test_metrics_tell_what_waits(
    queue_settings: Settings, committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    queue = queue_of(broker)
    async with working(broker):
        enqueue(broker, "refuse", str(tmp_path / "words"))
        await eventually(lambda: broker.queue_state(queue).dead, "a dead letter")
    for _ in range(3):
        enqueue(broker, "note", str(tmp_path / "words"), "a")
    await send(committing_database, broker, "note", str(tmp_path / "words"), "b")
    await asyncio.sleep(0.05)
    metrics = (await ask(queue_settings, broker, "/metrics")).text

    assert number(metrics, "tasks_waiting", queue=queue) == 3
    assert number(metrics, "tasks_delayed", queue=queue) == 0
    assert number(metrics, "tasks_dead", queue=queue) == 1
    assert 0.05 <= number(metrics, "tasks_outbox_oldest_seconds") < 2 * LIMIT  # and no milliseconds


async def test_metrics_of_what_is_away_are_left_out(
    remote_settings: Settings, nobody_there: TaskBroker, line: Proxy
) -> None:
    await line.stop()
    response = await ask(remote_settings, nobody_there, "/metrics")

    assert response.status_code == 200
    assert "tasks_waiting" not in response.text
    assert "tasks_outbox" not in response.text


async def test_other_paths_are_not_found(queue_settings: Settings, broker: TaskBroker) -> None:
    assert (await ask(queue_settings, broker, "/nowhere")).status_code == 404


async def test_alive_is_whose_loops_all_turn(
    queue_settings: Settings,
    broker: TaskBroker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each worker process shows it with a file."""
    monkeypatch.setenv(HEARTBEATS, str(tmp_path))
    monkeypatch.setattr("src.tasks.engine.maintenance.INTERVAL_SECONDS", 0.05)
    async with working(broker):
        (beat,) = await eventually(lambda: list(tmp_path.glob("*.heartbeat")), "a heartbeat")
        os.utime(beat, (0, 0))
        await eventually(health.is_alive, "another heartbeat")
        assert (await ask(queue_settings, broker, "/health/live")).status_code == 200
    assert not beat.exists()  # who has ended in order is not missed

    beat.touch()
    old = time.time() - health.MAX_HEARTBEAT_AGE - 1
    os.utime(beat, (old, old))
    response = await ask(queue_settings, broker, "/health/live")
    assert response.status_code == 503
    assert response.json()["checks"] == {"worker": "unavailable"}


@pytest.mark.slow
async def test_a_worker_serves_them(variables: dict[str, str], tmp_path: Path) -> None:
    """`python cli.py worker` does, for all its processes."""
    log = tmp_path / "log"
    worker = WorkerProcess(
        ["cli.py", "worker", "--processes", "2", "--threads", "1", "--health-port", "0"],
        variables,
        log,
    )
    try:
        await worker.until_told("worker_health")
        address = re.search(r"http://127.0.0.1:\d+", worker.told)
        assert address
        async with httpx.AsyncClient(base_url=address[0], timeout=LIMIT) as client:
            live, ready = await client.get("/health/live"), await client.get("/health/ready")
            metrics = (await client.get("/metrics")).text
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.ended() == 0
    finally:
        worker.kill()

    assert (live.status_code, ready.status_code) == (200, 200)
    assert number(metrics, "tasks_waiting", queue="default") == 0
    assert number(metrics, "tasks_outbox_oldest_seconds") == 0
    assert "Traceback" not in worker.told
