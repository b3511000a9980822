"""Jobs by the clock: docs/scheduler.md tells how to add one."""

from src.schedulers.scheduler import open_scheduler

__all__ = ["open_scheduler"]
