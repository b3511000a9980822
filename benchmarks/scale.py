"""The service with more rows and with more processes.

- *Rows*: the median of requests of one client, with 1,000, 100,000 and 1,000,000 items. The ratio is to
  1,000 items. A search ranks at most 1,000 matches and a total counts at most 10,001 items; a word that is in
  every item is the most expensive search.
- *Workers*: requests per second of `cli.py api --workers`, and processor time of all workers per request.
  The ratio is to one worker. The load runs on the same machine and needs cores too: on two cores, only the
  second figure says how the service scales. Several workers share their metrics in files, which costs each
  request about 15 µs.
"""

import asyncio
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import asyncpg
from endpoints import CONNECTIONS
from report import ROUNDS, SECONDS, Costs, report
from services import (
    ROOT,
    SERVICE,
    Servers,
    load,
    pinned,
    processor_seconds,
    render,
    run_script,
    serving,
    started,
    temporary,
)

from dev.server import free_port

SIZES = (1_000, 100_000, 1_000_000)
CHUNK = 50_000
FILL = """
INSERT INTO item (name, description, status, version)
SELECT 'Lamp ' || n, 'Piece ' || n % 1000, CASE WHEN n % 500 = 0 THEN 'archived' ELSE 'draft' END, 1
FROM generate_series($1::int, $2::int) n
"""
MIDDLE = "SELECT id FROM item ORDER BY id OFFSET $1 LIMIT 1"
REQUESTS = {
    "Read by ID": "{item}",
    "Page of 20": "?sort=-created_at&created_before=2126-01-01T00:00:00Z",
    "Page of 20 with one status": "?status=archived",
    "Page of 20 by name": "?sort=name",
    "Page of 20 and total": "?total=true",
    "Search, 1 in 1,000 items": "search?q=piece+777",
    "Search, every item": "search?q=lamp",
}
WORK = {  # by the cache of the service
    "memory": {"Health": "/api/v1/health/live", "Hit in memory": "/api/v1/items/"},
    "redis": {"Hit in Valkey": "/api/v1/items/"},
    "file": {"Hit in files": "/api/v1/items/"},
}
WORKERS = (1, 2, 4)


def table_sizes(backends: Servers, folder: Path) -> None:
    service = render(ROOT, folder / "rows", cache_backend="none", task_queue="none")
    with ExitStack() as stack:
        urls = {}
        for size in SIZES:
            variables = backends.variables(service)
            item = asyncio.run(fill(variables["DATABASE_URL"].replace("+asyncpg", ""), size))
            address = stack.enter_context(serving("main:app", service, variables))
            urls[size] = {
                name: f"{address}/api/v1/items/{path.format(item=item)}"
                for name, path in REQUESTS.items()
            }
        for name in REQUESTS:
            costs: Costs = {f"{size:,} items": [] for size in SIZES}
            for number in range(ROUNDS + 1):  # the first is a warm-up
                for size in SIZES:
                    sent = load(urls[size][name], clients=1, seconds=SECONDS / 5)
                    if number:
                        costs[f"{size:,} items"].append(sent.percentile(50))
            report(f"Rows: {name}", costs, "ms")


async def fill(url: str, size: int) -> str:
    """Create items; return the ID of one in the middle."""
    sys.stderr.write(f"Rows: creating {size:,} items\n")
    connection = await asyncpg.connect(url)
    for first in range(1, size, CHUNK):
        await connection.execute(FILL, first, min(first + CHUNK - 1, size))
    await connection.execute("VACUUM ANALYZE item")  # as autovacuum would
    item = await connection.fetchval(MIDDLE, size // 2)
    await connection.close()
    return str(item)


def workers(backends: Servers) -> None:
    for cache, requests in WORK.items():
        with ExitStack() as stack:
            variables = {**backends.variables(SERVICE), "CACHE_BACKEND_TYPE": cache}
            variables |= {"CACHE_FILE_PATH": str(stack.enter_context(temporary()))}
            variables |= {"DATABASE_POOL_SIZE": "5", "SCHEDULER_ENABLED": "false"}
            services = {
                count: stack.enter_context(with_workers(count, variables)) for count in WORKERS
            }
            for name, path in requests.items():
                rates: Costs = {f"workers: {count}": [] for count in WORKERS}
                costs: Costs = {f"workers: {count}": [] for count in WORKERS}
                for number in range(ROUNDS + 1):
                    for count, (address, process) in services.items():
                        spent = processor_seconds(process)
                        sent = load(address + path, clients=CONNECTIONS, seconds=SECONDS)
                        spent = processor_seconds(process) - spent
                        if number:
                            rates[f"workers: {count}"].append(sent.rate)
                            costs[f"workers: {count}"].append(spent / len(sent.latencies) * 1e6)
                report(f"Workers: {name}, requests", rates, "/s")
                if sys.platform == "linux":
                    report(f"Workers: {name}, processor time of a request", costs, "µs")


@contextmanager
def with_workers(count: int, variables: dict[str, str]) -> Generator[tuple[str, int]]:
    """Run the service on all cores; yield its address and its process ID."""
    port = free_port()
    options = ["--port", str(port), "--workers", str(count)]
    command = [sys.executable, "cli.py", "api", *options]
    variables = {**variables, "PORT": str(port)}
    with (
        pinned(tested=None),
        started(command, port, SERVICE, variables) as process,
        pinned(tested=False),
    ):
        yield f"http://127.0.0.1:{port}", process.pid


def main() -> None:
    with Servers() as backends:
        folder = backends.enter_context(temporary())
        table_sizes(backends, folder)
        workers(backends)


if __name__ == "__main__":
    run_script(main)
