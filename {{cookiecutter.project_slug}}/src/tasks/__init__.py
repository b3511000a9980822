"""Background tasks with Dramatiq: docs/tasks.md tells how to add one.

Importing this package makes the broker of the settings Dramatiq's own: actors find it there.
"""

from src.tasks.broker import broker
from src.tasks.engine.relay import open_relay
from src.tasks.outbox import enqueue, enqueue_message

__all__ = ["broker", "enqueue", "enqueue_message", "open_relay"]
