"""Requests that enqueue a tracked task, and the requests that poll it."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import pytest
from dramatiq import Actor, Message
from fastapi import FastAPI, Request, Response, status
from httpx import AsyncClient
from pydantic import SecretStr
from sqlalchemy import select

from src.api.accepted import accepted
from src.api.deps import DbSession
from src.core.config import Settings, get_settings
from src.db.models.task import OutboxMessage
from src.db.session import Database
from src.domain.task import TaskStatus
from src.repositories.task import TaskRepository
from src.schemas.task import TaskAccepted
from src.tasks import enqueue
from src.tasks.broker import create_broker
from tests.fixtures.client import connect
from tests.fixtures.environment import API
from tests.fixtures.statements import recorded

ACTS = f"{API}/acts/"
TASKS = f"{API}/tasks/"
PROBLEM = {"type": "urn:problem-type:no-lamps", "title": "No lamps", "detail": "None."}


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Actor[[str], None]]:
    """A tracked actor on a broker that is never connected."""

    def act(name: str) -> None: ...

    broker = create_broker(get_settings())
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    yield dramatiq.actor(actor_name="act", broker=broker, tracked=True)(act)
    broker.close()


@pytest.fixture
def acting_app(fresh_app: FastAPI, actor: Actor[[str], None]) -> FastAPI:
    @fresh_app.post(ACTS, status_code=status.HTTP_202_ACCEPTED)
    async def act(db: DbSession, request: Request, response: Response) -> TaskAccepted:
        return accepted(request, response, await enqueue(db, actor, "Lamp"))

    return fresh_app


@pytest.fixture
async def acting_client(acting_app: FastAPI, database: Database) -> AsyncGenerator[AsyncClient]:
    async with connect(acting_app, database) as client:
        yield client


async def outbox(database: Database) -> list[Message[Any]]:
    async with database.reads() as session:
        bodies = await session.scalars(select(OutboxMessage.body).order_by(OutboxMessage.id))
        return [Message.decode(body) for body in bodies]


async def test_an_accepted_task_is_queued(acting_client: AsyncClient, database: Database) -> None:
    response = await acting_client.post(ACTS)
    task_id = response.json()["task_id"]
    task = await acting_client.get(response.headers["Location"])

    assert (response.status_code, response.json()) == (202, {"task_id": task_id})
    assert response.headers["Location"] == f"{TASKS}{task_id}"
    assert response.headers["Retry-After"] == "1"
    assert (task.status_code, task.headers["Retry-After"]) == (200, "1")
    assert task.headers["Cache-Control"] == "no-store"
    (message,) = await outbox(database)
    assert (message.message_id, message.actor_name, message.args) == (task_id, "act", ("Lamp",))
    body = task.json()
    assert body.pop("created_at")
    assert body == {
        "id": task_id,
        "actor": "act",
        "status": "queued",
        "attempts": 0,
        "done": None,
        "total": None,
        "result": None,
        "problem": None,
        "started_at": None,
        "finished_at": None,
    }


@pytest.mark.parametrize(
    ("state", "result", "problem"),
    [(TaskStatus.SUCCEEDED, {"created": 1}, None), (TaskStatus.FAILED, None, PROBLEM)],
)
async def test_a_task_that_has_ended_has_a_result_or_a_problem(
    client: AsyncClient, database: Database, *, state: TaskStatus, result: object, problem: object
) -> None:
    async with database.transaction() as db:
        tasks = TaskRepository(db)
        (task_id,) = await tasks.add_all(["act"])
        await tasks.start(task_id, "act")
        await tasks.finish(task_id, state, result=result, problem=problem)
    response = await client.get(f"{TASKS}{task_id}")

    body = response.json()
    assert (body["status"], body["attempts"]) == (state.value, 1)
    assert (body["result"], body["problem"]) == (result, problem)
    assert body["started_at"]
    assert body["finished_at"]
    assert "Retry-After" not in response.headers


async def test_polling_needs_a_key_and_a_task(app: FastAPI, database: Database) -> None:
    key = "a-key-of-sixteen-characters"
    client = connect(app, database, Settings(ENV="test", API_KEYS=[SecretStr(key)]))
    refused = await client.get(f"{TASKS}{UUID(int=7)}")
    passed = await client.get(f"{TASKS}{UUID(int=7)}", headers={"X-API-Key": key})

    assert (refused.status_code, passed.status_code) == (401, 404)
    assert passed.json()["type"] == "urn:problem-type:task-not-found"


async def test_a_repeated_idempotency_key_enqueues_one_task(
    acting_client: AsyncClient, database: Database
) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    first, second = [await acting_client.post(ACTS, headers=headers) for _ in range(2)]

    assert first.json() == second.json()
    assert first.headers["Location"] == second.headers["Location"]
    assert len(await outbox(database)) == 1


async def test_location_has_the_root_path_and_the_message_has_principal_and_trace(
    acting_app: FastAPI, database: Database
) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    client = connect(acting_app, database, root_path="/lamps")
    response = await client.post(ACTS, headers={"traceparent": trace})

    assert response.headers["Location"] == f"/lamps{TASKS}{response.json()['task_id']}"
    (message,) = await outbox(database)
    assert message.options == {
        "principal": "developer:development",
        "request_id": response.headers["X-Request-ID"],
        "traceparent": trace,
    }


async def test_accepting_needs_one_transaction_and_polling_one_statement(
    acting_app: FastAPI, committing_database: Database
) -> None:
    client = connect(acting_app, committing_database)
    await client.post(ACTS)
    with recorded(committing_database) as accepting:
        response = await client.post(ACTS)
    with recorded(committing_database) as polling:
        await client.get(response.headers["Location"])

    assert accepting == ["BEGIN", "INSERT", "INSERT", "COMMIT"]
    assert polling == ["SELECT"]
