"""Clients that send requests all the time, and what they see."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import choice
from statistics import quantiles
from time import monotonic
from uuid import uuid4

from httpx import AsyncClient, Limits, Response, TransportError
from sqlalchemy import select

from src.db.session import Database
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import LIMIT
from tests.fixtures.notes import NOTES, Note

Step = Callable[[AsyncClient], Awaitable[Response]]
CLIENTS = 4  # for each step, half of them with a new connection for each request
PAUSE_SECONDS = 0.05  # so that the latency is not that of a full processor
ENOUGH = 50  # requests in a row that succeed


class Load:
    """Repeats each step until the block of `running` ends. A step sends a request."""

    def __init__(self, address: str, *steps: Step) -> None:
        self._address = address
        self._steps = steps
        self._seconds: list[float] = []
        self.results: Counter[int | str] = Counter()
        self.successes = 0  # since the last failure
        self.well_at = self.healed_at = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with asyncio.TaskGroup() as group:
            clients = [
                group.create_task(self._repeat(step, number % 2))
                for step in self._steps
                for number in range(CLIENTS)
            ]
            await self.succeeds()
            yield
            for client in clients:
                client.cancel()

    async def succeeds(self) -> None:
        """Wait until many requests in a row have succeeded."""
        self.successes = 0
        async with asyncio.timeout(LIMIT):
            while self.successes < ENOUGH * len(self._steps):  # noqa: ASYNC110 - clients count
                await asyncio.sleep(0.02)

    async def recovers(self, condition: Callable[[], Awaitable[bool]] | None = None) -> None:
        """Call this when the fault has ended. The condition says that everything works again."""
        self.healed_at = monotonic()
        if condition:
            async with asyncio.timeout(LIMIT):
                while not await condition():  # noqa: ASYNC110 - other processes change it
                    await asyncio.sleep(0.02)
            self.well_at = monotonic()
        await self.succeeds()

    @property
    def recovery_seconds(self) -> float:
        return max(0.0, self.well_at - self.healed_at)

    async def _repeat(self, step: Step, keep_alive: int) -> None:
        limits = Limits(max_keepalive_connections=keep_alive)
        async with AsyncClient(
            base_url=self._address, headers=HEADERS, timeout=LIMIT, limits=limits
        ) as client:
            while True:
                started, result = monotonic(), await self._result(step, client)
                self._seconds.append(monotonic() - started)
                self.results[result] += 1
                if isinstance(result, int) and result < 400:
                    self.successes += 1
                else:
                    self.successes, self.well_at = 0, monotonic()
                await asyncio.sleep(PAUSE_SECONDS)

    async def _result(self, step: Step, client: AsyncClient) -> int | str:
        try:
            return (await step(client)).status_code
        except TransportError as error:
            return type(error).__name__

    def columns(self) -> tuple[str, str, str]:
        """Return the number of requests, the failures by kind, and the latency."""
        failures = {name: n for name, n in self.results.items() if str(name) >= "4"}
        failed = ", ".join(f"{name}: {n:,}" for name, n in sorted(failures.items(), key=str))
        cuts = quantiles(self._seconds, n=100)
        latency = f"{cuts[49] * 1000:,.0f} / {cuts[98] * 1000:,.0f} ms"
        return f"{self.results.total():,}", failed or "none", latency


class Notes:
    """Steps that write and read notes. They remember each write that was acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, str] = {}  # paths by text

    async def write(self, client: AsyncClient) -> Response:
        text = uuid4().hex
        response = await client.post(NOTES, json={"text": text})
        if response.status_code == 201:
            self.acknowledged[text] = response.headers["location"]
        return response

    async def read(self, client: AsyncClient) -> Response:
        """Read one that exists."""
        if not self.acknowledged:
            return await client.get(NOTES)
        text, path = choice(list(self.acknowledged.items()))  # noqa: S311 - no secret
        response = await client.get(path)
        assert response.status_code != 200 or response.json()["text"] == text
        return response

    async def lost(self, database: Database) -> set[str]:
        async with database.reads() as session:
            return self.acknowledged.keys() - set(await session.scalars(select(Note.text)))
