"""Failures of brokers and workers under load: every accepted task runs."""

import importlib
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import get_args
from uuid import uuid4

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response
from sqlalchemy import URL

from src.api.deps import DbSession
from src.core.broker_type import BrokerType
from src.tasks import broker, enqueue
from tests.faults.conftest import Report
from tests.faults.load import Load
from tests.faults.servers import Server, api, serving
from tests.fixtures import client
from tests.fixtures.commands import Process
from tests.test_tasks.actors import declare, words
from tests.test_tasks.workers import eventually, variables_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's"),
]
WORKER = ("-m", "dramatiq", "src.tasks.jobs", "tests.test_tasks.worker_entrypoint")


def application() -> FastAPI:
    declare(broker, os.environ["TEST_QUEUE"])
    app = client.application()

    @app.post("/words/{word}", status_code=202)
    async def write(word: str, db: DbSession) -> None:
        await enqueue(db, broker.get_actor("note"), os.environ["TEST_FILE"], word)

    return app


class Words:
    """A step that enqueues a task, which writes a word into a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.accepted: set[str] = set()

    async def enqueue(self, client: AsyncClient) -> Response:
        word = uuid4().hex
        response = await client.post(f"/words/{word}")
        if response.status_code == 202:
            self.accepted.add(word)
        return response

    async def have_run(self, accepted: set[str]) -> bool:
        return accepted <= set(words(self._file))


@pytest.fixture(scope="module", params=get_args(BrokerType))
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"tests.test_tasks.servers.{request.param}")


@pytest.fixture(scope="module")
async def server(
    module: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Server]:
    run = partial(module.stored, tmp_path_factory.mktemp("broker"))
    async with serving(Server(run, module.connect)) as server:
        yield server


@pytest.fixture
def variables(
    module: ModuleType, server: Server, committing_url: URL, tmp_path: Path
) -> dict[str, str]:
    queue = f"test-{uuid4().hex}"
    return {
        **variables_for(committing_url),
        **module.variables(module.via(server.url, server.proxy.port), queue),
        "TEST_QUEUE": queue,
        "TEST_FILE": str(tmp_path / "words"),
    }


@pytest.fixture
def start_worker(variables: dict[str, str], tmp_path: Path) -> Iterator[Callable[[], Process]]:
    started: list[Process] = []

    def start_worker() -> Process:
        arguments = (*WORKER, "--skip-logging", "--processes", "1", "--threads", "2")
        started.append(Process(*arguments, log=tmp_path / "worker.log", **variables))
        return started[-1]

    yield start_worker
    for worker in started:
        worker.kill()


async def test_every_accepted_task_runs(
    module: ModuleType,
    server: Server,
    start_worker: Callable[[], Process],
    *,
    variables: dict[str, str],
    tmp_path: Path,
    report: Report,
) -> None:
    worker = start_worker()
    async with api(f"{__name__}:application", folder=tmp_path, **variables) as (_, address):
        for fault in ("killed", "frozen", "cut off", "worker"):
            tasks = Words(tmp_path / "words")
            load = Load(address, tasks.enqueue)
            async with load.running():
                if fault == "worker":
                    worker.kill()
                    start_worker()
                else:
                    await server.fail(fault)
                await load.recovers(partial(tasks.have_run, set(tasks.accepted)))
            await eventually(partial(tasks.have_run, tasks.accepted), "all tasks")

            assert load.results.keys() == {202}, (fault, load.results)
            name = module.NAME
            broken = f"Worker of {name} is killed" if fault == "worker" else f"{name} is {fault}"
            report(broken, load, f"{len(tasks.accepted):,} tasks")
