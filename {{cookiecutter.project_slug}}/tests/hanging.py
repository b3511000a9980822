"""Names a test that hangs, and ends a process that does not end by itself.

`faulthandler_timeout` of pytest ends the process with the stack of each thread. In that of an event
loop nothing tells what is awaited, and in none which test it is: that is said here, just before.
"""

import asyncio
import faulthandler
import gc
import os
import sys
from collections.abc import Generator
from threading import Timer
from typing import TextIO

import pytest

MARGIN = 5.0  # seconds between that and the end
STDERR = pytest.StashKey[TextIO]()


def limit_of(config: pytest.Config) -> float:
    return float(config.getini("faulthandler_timeout") or 0)


def pytest_configure(config: pytest.Config) -> None:
    """Keep the real standard error: while a test runs pytest captures what goes to the other."""
    number = sys.__stderr__.fileno() if sys.__stderr__ else 2
    config.stash[STDERR] = os.fdopen(os.dup(number), "w", encoding="utf-8")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    limit = limit_of(item.config)
    if limit <= MARGIN:
        return (yield)
    timer = Timer(limit - MARGIN, tell, [item.nodeid, item.config.stash[STDERR]])
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()


def tell(test: str, file: TextIO) -> None:
    file.write(f"\n{test} hangs. What is awaited:\n")
    for task in gc.get_objects():  # of every loop, in whatever thread
        if isinstance(task, asyncio.Task) and not task.done():
            task.print_stack(file=file)
    file.flush()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Servers are stopped after this, and the interpreter waits for threads that are left.

    A worker of pytest-xdist waits for the others too; who started it ends it.
    """
    limit = limit_of(config)
    if limit and not hasattr(config, "workerinput"):
        faulthandler.dump_traceback_later(limit, exit=True, file=config.stash[STDERR])
