"""Background tasks with Dramatiq. See docs/tasks.md.

Write tasks in `jobs.py`, with the functions of `context.py`. Endpoints call `enqueue`.
Importing this package sets Dramatiq's global broker, on which actors are declared.
"""

from src.tasks.broker import broker
from src.tasks.engine.actors import load_actors
from src.tasks.engine.relay import open_relay
from src.tasks.outbox import enqueue, enqueue_message

__all__ = ["broker", "enqueue", "enqueue_message", "load_actors", "open_relay"]
