"""The duration of health checks while users log in: argon2 must not delay other requests.

One process serves the API on one core. 50 users log in again and again, while another connection reads
`/health/live`, in turns without and with log-ins.
"""

import asyncio
import statistics
import time

from argon2 import PasswordHasher
from httpx import AsyncClient, Limits
from report import ROUNDS, SECONDS, Costs, report
from services import SERVICE, Servers, serving
from sqlalchemy import URL, func, make_url

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


async def measure(address: str) -> None:
    kinds = {"without log-ins": 0, f"{USERS} users log in": USERS}
    medians: Costs = {kind: [] for kind in kinds}
    slowest: Costs = {kind: [] for kind in kinds}
    async with AsyncClient(base_url=f"{address}/api/v1", timeout=60, limits=Limits()) as client:
        for _ in range(ROUNDS):
            for kind, users in kinds.items():
                durations = await probe_during(client, users)
                medians[kind].append(statistics.median(durations))
                slowest[kind].append(statistics.quantiles(durations, n=100)[98])
    report("A health check, median", medians, "ms")
    report("A health check, p99", slowest, "ms")


async def probe_during(client: AsyncClient, users: int) -> list[float]:
    """Return the durations of health checks, in milliseconds, while users log in."""
    until = time.monotonic() + SECONDS
    async with asyncio.TaskGroup() as group:
        probing = group.create_task(probe(client, until))
        for number in range(users):
            group.create_task(log_in(client, number, until))
    return probing.result()


def main() -> None:
    with Servers() as servers:
        variables = servers.variables(SERVICE)
        asyncio.run(add_users(make_url(variables["DATABASE_URL"])))
        with serving("main:app", SERVICE, variables, "--no-access-log") as address:
            asyncio.run(measure(address))


if __name__ == "__main__":
    main()
