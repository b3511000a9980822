"""Scheduled jobs: docs/scheduler.md.

Add your jobs to `jobs.py`. `context.py` has what a job can use, and `scheduler.py` the defaults.
"""

from src.schedulers import cli

__all__ = ["cli"]
