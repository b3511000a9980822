"""The slowest requests of one uvicorn process.

- *Beyond the pool*: with 40 clients, twice as many as the service has connections, the 99th percentile
  as a multiple of the median. The reference is the textbook, which opens up to 15 connections.
- *Backlog*: with two clients, the 99th percentile while the relay of the same process sends 100,000
  messages of the outbox. The reference is the same process without a backlog.

The services have no cache. Requests and PostgreSQL share the cores with other work of the machine, which
makes a percentile less stable than a rate.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

import asyncpg
from dramatiq import Message
from endpoints import HERE, ITEM, WARM_UP_SECONDS
from report import ROUNDS, SECONDS, Costs, report
from services import ROOT, BenchError, Servers, load, render, run_script, serving, temporary

from dev.rabbitmq import embedded_rabbitmq
from dev.server import ServerError

CLIENTS = 40
READERS = 2
BACKLOG = 100_000
MESSAGE = Message(queue_name="default", actor_name="bench", args=(1,), kwargs={}, options={})
FILL = (
    "INSERT INTO outbox_message (body) SELECT $1 FROM generate_series(1, $2::int)",
    MESSAGE.encode(),
    BACKLOG,
)
COUNT = "SELECT count(*) FROM outbox_message"
POLL_SECONDS = 1.2  # the relay looks for messages of other processes each second


def beyond_the_pool(backends: Servers, service: Path) -> None:
    with (
        serving("textbook:app", HERE, backends.variables(HERE)) as textbook,
        serving("main:app", service, backends.variables(service)) as address,
    ):
        items = {"textbook": f"{textbook}/items/", "service": f"{address}/api/v1/items/"}
        for title, query, body in (("Create", "", ITEM), ("List of 20", "?limit=20", "")):
            costs: Costs = {name: [] for name in items}
            for url in items.values():
                load(url + query, body, clients=CLIENTS, seconds=WARM_UP_SECONDS)
            for _ in range(ROUNDS):
                for name, url in items.items():
                    sent = load(url + query, body, clients=CLIENTS, seconds=SECONDS)
                    costs[name].append(sent.percentile(99) / sent.percentile(50))
            report(f"Beyond the pool, {title}: p99 / p50", costs, "x")


def backlog(backends: Servers, service: Path, broker: str, settings: Mapping[str, str]) -> None:
    variables = {**backends.variables(service), **settings}
    database = variables["DATABASE_URL"].replace("+asyncpg", "")
    with serving("main:app", service, variables) as address:
        url = f"{address}/api/v1/items/"
        load(url, ITEM, clients=1, seconds=WARM_UP_SECONDS)
        load(url, clients=READERS, seconds=WARM_UP_SECONDS)
        costs: Costs = {"without a backlog": [], "while it is sent": []}
        sent: Costs = {"the relay": []}
        for _ in range(ROUNDS):
            quiet = load(url, clients=READERS, seconds=SECONDS)
            costs["without a backlog"].append(quiet.percentile(99))
            asyncio.run(execute(database, *FILL))
            time.sleep(POLL_SECONDS)  # until the relay has found it
            before, started = asyncio.run(execute(database, COUNT)), time.monotonic()
            busy = load(url, clients=READERS, seconds=SECONDS)
            costs["while it is sent"].append(busy.percentile(99))
            left, elapsed = asyncio.run(execute(database, COUNT)), time.monotonic() - started
            if not left:
                raise BenchError("The backlog was sent before the load ended.")
            sent["the relay"].append((before - left) / elapsed)
            asyncio.run(execute(database, "DELETE FROM outbox_message"))
            time.sleep(POLL_SECONDS)  # for the batch that is being sent
        report(f"Backlog for {broker}: p99 of a list of 20", costs, "ms")
        report(f"Backlog for {broker}: messages sent", sent, "/s")


async def execute(url: str, statement: str, *arguments: object) -> int:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement, *arguments) or 0
    finally:
        await connection.close()


def main() -> None:
    with Servers() as backends:
        folder = backends.enter_context(temporary())
        services = {
            queue: render(ROOT, folder / queue, cache_backend="none", task_queue=queue)
            for queue in ("redis", "rabbitmq")
        }
        beyond_the_pool(backends, services["redis"])
        backlog(backends, services["redis"], "Valkey", {})
        with contextlib.suppress(ServerError):  # RabbitMQ is not installed
            settings = {"RABBITMQ_URL": backends.enter_context(embedded_rabbitmq())}
            backlog(backends, services["rabbitmq"], "RabbitMQ", settings)


if __name__ == "__main__":
    run_script(main)
