"""Show that argon2 does not delay other requests: the duration of health checks during log-ins.

One process serves the API. Users log in again and again, as many at the same time as there are users,
while another connection reads `/health/live`, first without and then with log-ins.
"""

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter

from argon2 import PasswordHasher
from harness import SERVICE, migrated
from httpx import AsyncClient, HTTPError
from sqlalchemy import URL, func

from src.auth.passwords import ITERATIONS, MEMORY_KIB, PARALLELISM
from src.db.models.user import User
from src.db.session import open_database
from src.domain.principal import Role

USERS, SECONDS = 50, 15
PASSWORD = "lamp river cactus 7"  # noqa: S105 - of users of the benchmark


async def add_users(url: URL) -> None:
    stored = PasswordHasher(ITERATIONS, MEMORY_KIB, PARALLELISM).hash(PASSWORD)
    async with open_database(url, pool_size=1) as database, database.transaction() as session:
        for number in range(USERS):
            user = User(email=f"{number}@example.com", password_hash=stored, role=Role.MEMBER)
            user.verified_at = func.now()
            session.add(user)


async def log_in(client: AsyncClient, number: int, until: float, statuses: Counter[int]) -> None:
    body = {"email": f"{number}@example.com", "password": PASSWORD}
    while time.monotonic() < until:
        statuses[(await client.post("/sessions/", json=body)).status_code] += 1


async def probe(client: AsyncClient, until: float) -> list[float]:
    """Return the durations of health checks, in milliseconds."""
    durations = []
    while time.monotonic() < until:
        start = time.perf_counter()
        (await client.get("/health/live")).raise_for_status()
        durations.append(1000 * (time.perf_counter() - start))
        await asyncio.sleep(0.005)
    return durations


def report(name: str, durations: list[float]) -> None:
    median, p99 = statistics.median(durations), statistics.quantiles(durations, n=100)[98]
    print(f"{name}: median {median:.1f} ms, p99 {p99:.1f} ms, {len(durations)} checks")


async def measure(url: str) -> None:
    base = f"{url}/api/v1"
    async with (
        AsyncClient(base_url=base) as probes,
        AsyncClient(base_url=base, timeout=60) as users,
    ):
        while True:
            try:
                await probes.get("/health/live")
                break
            except HTTPError:
                await asyncio.sleep(0.1)
        report("Without log-ins", await probe(probes, time.monotonic() + SECONDS))
        until = time.monotonic() + SECONDS
        statuses: Counter[int] = Counter()
        async with asyncio.TaskGroup() as group:
            during = group.create_task(probe(probes, until))
            for number in range(USERS):
                group.create_task(log_in(users, number, until, statuses))
        report(f"During log-ins of {USERS} users", during.result())
        print(f"Log-ins per second: {statuses.total() / SECONDS:.0f}, statuses: {dict(statuses)}")


def main() -> None:
    with migrated() as url:
        asyncio.run(add_users(url))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        variables = {
            **os.environ,
            "DATABASE_URL": url.render_as_string(hide_password=False),
            "CACHE_BACKEND_TYPE": "memory",
            "SCHEDULER_ENABLED": "false",
        }
        command = [sys.executable, "cli.py", "api", "--port", str(port)]
        with subprocess.Popen(command, cwd=SERVICE, env=variables) as server:
            asyncio.run(measure(f"http://127.0.0.1:{port}"))
            server.terminate()


if __name__ == "__main__":
    main()
