"""Background tasks with Dramatiq: docs/tasks.md.

Yours is `jobs.py`, with `enqueue` for endpoints and services, and `context.py` for tasks.
Importing this package sets Dramatiq's broker, so that every actor is declared on ours.
"""

from src.tasks.broker import broker
from src.tasks.engine.relay import open_relay
from src.tasks.outbox import enqueue, enqueue_message

__all__ = ["broker", "enqueue", "enqueue_message", "open_relay"]
