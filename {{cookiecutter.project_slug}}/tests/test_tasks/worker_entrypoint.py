"""A module for `python -m dramatiq`, which declares the actors of the tests."""

import os
import sys
from typing import Any, cast

from dramatiq import Broker, Middleware, Worker

from src.tasks import broker
from tests.test_tasks.actors import STOPPING, declare


class ShutdownWriter(Middleware):
    def before_worker_shutdown(self, _: Broker, __: Worker) -> None:
        sys.stderr.write(f"{STOPPING}\n")
        sys.stderr.flush()


# Milliseconds: tests that kill a worker wait for less time.
cast(Any, broker).heartbeat_timeout = int(os.environ.get("TEST_HEARTBEAT_TIMEOUT", "5000"))
broker.add_middleware(ShutdownWriter())
declare(broker, os.environ["TEST_QUEUE"])
