"""The health server of a worker."""

import asyncio
import os
import re
import signal
import time
from pathlib import Path

import dramatiq
import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.types import Receive, Scope, Send

from src.core.config import Settings
from src.core.process_metrics import SHARED_FOLDER
from src.db.session import Database
from src.tasks.engine import health, maintenance
from src.tasks.engine.brokers.base import TaskBroker
from tests import proxy
from tests.fixtures.commands import Process
from tests.test_tasks.conftest import OpenBroker
from tests.test_tasks.workers import (
    LIMIT,
    Logs,
    enqueue,
    events,
    eventually,
    queue_of,
    send,
    settings_for,
    wait_for_dead_letter,
    working,
)


async def get(settings: Settings, broker: TaskBroker, path: str) -> httpx.Response:
    app = health.create_app(settings, broker)

    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": state}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
            return await client.get(path)


def number(metrics: str, name: str) -> float:
    (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", metrics, re.MULTILINE)
    return float(found)


async def test_readiness_fails_and_metrics_are_omitted_for_unavailable_servers(
    queue_settings: Settings,
    db_proxy: proxy.PostgresProxy,
    broker: TaskBroker,
    open_broker: OpenBroker,
) -> None:
    await db_proxy.stop()
    without = settings_for(db_proxy.url, {})
    unreachable_broker = open_broker(port=1)
    ready = await get(queue_settings, broker, "/health/ready")
    without_broker = await get(queue_settings, unreachable_broker, "/health/ready")
    without_database = await get(without, broker, "/health/ready")
    metrics = await get(without, unreachable_broker, "/metrics")

    assert (ready.status_code, ready.headers["content-type"]) == (200, "application/json")
    assert ready.json() == {"status": "ok", "checks": {"broker": "ok", "database": "ok"}}
    assert without_broker.status_code == without_database.status_code == 503
    assert without_broker.json() == {
        "status": "unavailable",
        "checks": {"broker": "unavailable", "database": "ok"},
    }
    assert without_database.json()["checks"] == {"broker": "ok", "database": "unavailable"}
    assert metrics.status_code == 200
    assert "tasks_waiting" not in metrics.text
    assert "tasks_outbox" not in metrics.text


async def test_metrics_count_messages_in_broker_and_outbox(
    queue_settings: Settings, committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    queue = queue_of(broker)
    async with working(broker):
        enqueue(broker, "refuse", str(tmp_path / "words"))
        await wait_for_dead_letter(broker)
    for _ in range(3):
        enqueue(broker, "note", "path", "a")
    for _ in range(2):
        broker.enqueue(broker.get_actor("note").message("path", "a"), delay=60_000)
    await send(committing_database, broker, "note", "path", "b")
    await asyncio.sleep(0.05)
    metrics = (await get(queue_settings, broker, "/metrics")).text

    for name, count in {"waiting": 3, "delayed": 2, "dead": 1}.items():
        assert number(metrics, f"tasks_{name}" + '{queue="' + queue + '"}') == count
    assert 0.05 <= number(metrics, "tasks_outbox_oldest_seconds") < 2 * LIMIT  # in seconds
    outcome = {"queue": queue, "actor": "refuse", "outcome": "dead"}
    assert REGISTRY.get_sample_value("tasks_processed_total", outcome) == 1


async def test_liveness_requires_a_recent_heartbeat_of_each_process(
    queue_settings: Settings,
    broker: TaskBroker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SHARED_FOLDER, str(tmp_path))
    monkeypatch.setattr(maintenance, "INTERVAL_SECONDS", 0.05)
    old = time.monotonic() - health.MAX_HEARTBEAT_AGE - 1
    async with working(broker):
        (beat,) = await eventually(lambda: list(tmp_path.glob("*.heartbeat")), "a heartbeat")
        os.utime(beat, (old, old))
        await eventually(health.is_alive, "another heartbeat")
        assert (await get(queue_settings, broker, "/health/live")).status_code == 200
    assert not beat.exists()  # a stopped process does not fail the check

    beat.touch()
    os.utime(beat, (old, old))
    response = await get(queue_settings, broker, "/health/live")
    assert response.status_code == 503
    assert response.json()["checks"] == {"worker": "unavailable"}


async def test_blocked_event_loop_is_logged(
    broker: TaskBroker, queue: str, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(maintenance, "BLOCKED_SECONDS", 0.05)

    async def block_loop() -> None:
        time.sleep(0.2)  # noqa: ASYNC251 - the mistake

    dramatiq.actor(queue_name=queue, broker=broker)(block_loop)
    async with working(broker):
        enqueue(broker, "block_loop")
        await eventually(lambda: events(logs, "event_loop_blocked"), "the warning")


@pytest.mark.slow
async def test_health_server_covers_all_worker_processes(
    variables: dict[str, str], broker: TaskBroker, committing_database: Database, tmp_path: Path
) -> None:
    command = ["cli.py", "worker", "--processes", "2", "--threads", "1", "--health-port", "0"]
    worker = Process(*command, log=tmp_path / "log", HOST="127.0.0.1", **variables)
    try:
        await asyncio.to_thread(worker.wait_for_log, "health_server_started")
        address = re.search(r"http://127.0.0.1:\d+", worker.log_text)
        assert address
        async with httpx.AsyncClient(base_url=address[0], timeout=LIMIT) as client:
            live, ready = await client.get("/health/live"), await client.get("/health/ready")
            # Its queue is unknown in `src`.
            await send(committing_database, broker, "note", "path", "a")
            await asyncio.to_thread(worker.wait_for_log, "outbox_message_postponed")
            metrics = (await client.get("/metrics")).text
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, LIMIT) == 0
    finally:
        worker.kill()

    assert (live.status_code, ready.status_code) == (200, 200)
    assert number(metrics, "tasks_sent_total") == 0
    assert "Traceback" not in worker.log_text
