"""Scheduled jobs: docs/scheduler.md.

Yours is `jobs.py`, with what a job finds in `context.py`; `scheduler.py` has the defaults.
"""

from src.schedulers import cli

__all__ = ["cli"]
