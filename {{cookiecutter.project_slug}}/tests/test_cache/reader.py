"""A program that reads one slow value through the cache, and logs each computation of it."""

import asyncio
import os
import sys
from pathlib import Path

from src.cache import cached, open_cache
from src.core.config import load_settings


async def main(log: str, seconds: str) -> None:
    @cached(key="slow")
    async def read() -> int:
        with Path(log).open("a") as calls:  # noqa: ASYNC230 - a tiny write
            calls.write(f"{os.getpid()}\n")
        await asyncio.sleep(float(seconds))
        return 42

    async with open_cache(load_settings()):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        found = await asyncio.gather(*(read() for _ in range(50)))
    sys.stdout.write(f"{sum(found)}\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
