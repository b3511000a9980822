"""The duration of health checks while users log in: argon2 must not delay other requests.

One process serves the API. 50 users log in again and again, while another connection reads
`/health/live`, in turns without and with log-ins. All run on the same cores.
"""

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time

from argon2 import PasswordHasher
from harness import SERVICE, migrated
from httpx import AsyncClient, HTTPError
from report import ROUNDS, SECONDS, Costs, report
from sqlalchemy import URL, func

from src.auth.passwords import ITERATIONS, MEMORY_KIB, PARALLELISM
from src.db.models.user import User
from src.db.session import open_database
from src.domain.principal import Role

USERS = 50
PASSWORD = "lamp river cactus 7"  # noqa: S105 - of users of the benchmark


async def add_users(url: URL) -> None:
    stored = PasswordHasher(ITERATIONS, MEMORY_KIB, PARALLELISM).hash(PASSWORD)
    async with open_database(url, pool_size=1) as database, database.transaction() as session:
        for number in range(USERS):
            user = User(email=f"{number}@example.com", password_hash=stored, role=Role.MEMBER)
            user.verified_at = func.now()
            session.add(user)


async def log_in(client: AsyncClient, number: int, until: float) -> None:
    body = {"email": f"{number}@example.com", "password": PASSWORD}
    while time.monotonic() < until:
        (await client.post("/sessions/", json=body)).raise_for_status()


async def probe(client: AsyncClient, until: float) -> list[float]:
    """Return the durations of health checks, in milliseconds."""
    durations = []
    while time.monotonic() < until:
        start = time.perf_counter()
        (await client.get("/health/live")).raise_for_status()
        durations.append(1000 * (time.perf_counter() - start))
        await asyncio.sleep(0.005)
    return durations


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
        medians: Costs = {"without log-ins": [], f"{USERS} users log in": []}
        slowest: Costs = {name: [] for name in medians}
        for _ in range(ROUNDS):
            for name in medians:
                durations = await probe_during(probes, users if "users" in name else None)
                medians[name].append(statistics.median(durations))
                slowest[name].append(statistics.quantiles(durations, n=100)[98])
        report("A health check, median", medians, "ms")
        report("A health check, p99", slowest, "ms")


async def probe_during(probes: AsyncClient, users: AsyncClient | None) -> list[float]:
    """Return the durations of health checks, in milliseconds, while users log in."""
    until = time.monotonic() + SECONDS
    async with asyncio.TaskGroup() as group:
        found = group.create_task(probe(probes, until))
        for number in range(USERS if users else 0):
            group.create_task(log_in(users, number, until))
    return found.result()


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
