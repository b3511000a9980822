"""Requests that leave the work to a task, and the task as those see it who follow it."""

from collections.abc import Mapping
from types import MappingProxyType
from uuid import UUID, uuid4

import pytest
from dramatiq import Message
from fastapi import FastAPI
from httpx import AsyncClient, Response
from pydantic import SecretStr
from sqlalchemy import select

from src.core.config import Settings
from src.db.models.task import OutboxMessage
from src.db.session import Database
from src.domain.task import TaskStatus
from src.repositories.task import TaskRepository
from tests.fixtures.client import connect
from tests.fixtures.statements import recorded

IMPORTS = "/api/v1/item-imports/"
TASKS = "/api/v1/tasks/"
CSV = {"Content-Type": "text/csv"}
KEY = "a-key-of-sixteen-characters"
NOBODY = UUID(int=7)
EMPTY: Mapping[str, str] = MappingProxyType({})


async def post_import(client: AsyncClient, headers: Mapping[str, str] = EMPTY) -> Response:
    return await client.post(IMPORTS, content="name\nLamp\n", headers={**CSV, **headers})


async def kept(database: Database) -> list[Message[object]]:
    async with database.reads() as session:
        bodies = await session.scalars(select(OutboxMessage.body).order_by(OutboxMessage.id))
        return [Message.decode(body) for body in bodies]


async def test_what_is_accepted_is_a_task_to_follow(
    client: AsyncClient, database: Database
) -> None:
    answer = await post_import(client)
    task_id = answer.json()["task_id"]
    task = await client.get(answer.headers["Location"])

    assert (answer.status_code, answer.json()) == (202, {"task_id": task_id})
    assert answer.headers["Location"] == f"{TASKS}{task_id}"
    assert answer.headers["Retry-After"] == "1"
    assert (task.status_code, task.headers["Retry-After"]) == (200, "1")
    assert task.headers["Cache-Control"] == "no-store"
    (message,) = await kept(database)
    assert (message.message_id, message.actor_name) == (task_id, "import_items")
    body = task.json()
    assert body.pop("created_at")
    assert body == {
        "id": task_id,
        "actor": "import_items",
        "status": "queued",
        "attempts": 0,
        "done": None,
        "total": None,
        "result": None,
        "problem": None,
        "started_at": None,
        "finished_at": None,
    }


async def test_where_to_follow_it_counts_from_the_root_of_the_host(
    app: FastAPI, database: Database
) -> None:
    """As the Location of a new item does, behind a proxy that serves the service below a path."""
    client = connect(app, database, root_path="/lamps")
    answer = await post_import(client)

    assert answer.headers["Location"] == f"/lamps{TASKS}{answer.json()['task_id']}"


async def test_a_task_that_is_done_has_a_result(client: AsyncClient, database: Database) -> None:
    async with database.transaction() as db:
        tasks = TaskRepository(db)
        (task_id,) = await tasks.add_all(["act"])
        await tasks.start(task_id, "act")
        await tasks.finish(task_id, TaskStatus.SUCCEEDED, result={"created": 1})
    answer = await client.get(f"{TASKS}{task_id}")

    body = answer.json()
    assert (body["status"], body["attempts"], body["result"]) == ("succeeded", 1, {"created": 1})
    assert body["started_at"]
    assert body["finished_at"]
    assert "Retry-After" not in answer.headers


async def test_a_task_that_failed_has_a_problem(client: AsyncClient, database: Database) -> None:
    problem = {"type": "urn:problem-type:no-lamps", "title": "No lamps", "detail": "None."}
    async with database.transaction() as db:
        tasks = TaskRepository(db)
        (task_id,) = await tasks.add_all(["act"])
        await tasks.finish(task_id, TaskStatus.FAILED, problem=problem)
    body = (await client.get(f"{TASKS}{task_id}")).json()

    assert (body["status"], body["problem"], body["result"]) == ("failed", problem, None)


async def test_there_is_no_such_task(client: AsyncClient) -> None:
    answer = await client.get(f"{TASKS}{uuid4()}")

    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:problem-type:task-not-found"
    assert (await client.get(f"{TASKS}7")).status_code == 422


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "import-no-header"),
        (b"name\n", "import-no-rows"),
        (b"name,price\nLamp,1\n", "import-unknown-column"),
        (b"name\n\xff\n", "import-not-csv"),
    ],
)
async def test_what_is_no_file_of_items_starts_no_task(
    client: AsyncClient, database: Database, content: bytes, code: str
) -> None:
    answer = await client.post(IMPORTS, content=content, headers=CSV)

    assert answer.status_code in {400, 422}
    if content:
        assert answer.json()["type"] == f"urn:problem-type:{code}"
    assert await kept(database) == []


async def test_there_is_no_such_import(client: AsyncClient) -> None:
    answer = await client.get(f"{IMPORTS}{uuid4()}")

    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:problem-type:item-import-not-found"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", IMPORTS),
        ("GET", f"{IMPORTS}{NOBODY}"),
        ("GET", f"{TASKS}{NOBODY}"),
    ],
)
async def test_all_of_it_asks_for_a_key(
    app: FastAPI, database: Database, method: str, path: str
) -> None:
    client = connect(app, database, Settings(ENV="test", API_KEYS=[SecretStr(KEY)]))
    refused = await client.request(method, path, content="name\nLamp\n", headers=CSV)
    passed = await client.request(
        method, path, content="name\nLamp\n", headers=CSV | {"X-API-Key": KEY}
    )

    assert refused.status_code == 401
    assert passed.status_code in {202, 404, 422}


async def test_a_request_that_comes_again_starts_no_second_task(
    client: AsyncClient, database: Database
) -> None:
    headers = CSV | {"Idempotency-Key": str(uuid4())}
    answers = [
        await client.post(IMPORTS, content="name\nLamp\n", headers=headers) for _ in range(2)
    ]

    assert answers[0].json() == answers[1].json()
    assert answers[0].headers["Location"] == answers[1].headers["Location"]
    assert len(await kept(database)) == 1


async def test_the_request_is_named_in_the_message(client: AsyncClient, database: Database) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = await post_import(client, headers={"traceparent": trace})

    (message,) = await kept(database)
    assert message.options == {
        "request_id": answer.headers["X-Request-ID"],
        "traceparent": trace,
    }


async def test_to_accept_is_one_transaction(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    """A statement each for the file, the task and the message."""
    await committing_client.post(IMPORTS, content="name\nLamp\n", headers=CSV)
    with recorded(committing_database) as sent:
        await committing_client.post(IMPORTS, content="name\nLamp\n", headers=CSV)

    assert sent == ["BEGIN", "INSERT", "INSERT", "INSERT", "COMMIT"]


async def test_to_follow_is_one_statement(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    location = (await post_import(committing_client)).headers["Location"]
    with recorded(committing_database) as sent:
        await committing_client.get(location)

    assert sent == ["SELECT"]
