"""Functions for jobs, which take no arguments. See also `src.core.context`."""

from dataclasses import dataclass
from datetime import datetime

from src.core.context import Context, optional_context, transaction, use_context
from src.core.context import current_settings as job_settings

__all__ = ["JobContext", "job_settings", "job_tick", "transaction", "use_context"]


@dataclass(frozen=True)
class JobContext(Context):
    tick: datetime | None = None


def job_tick() -> datetime | None:
    """Return the time at which this run was due. Returns None outside the scheduler, as in tests."""
    context = optional_context()
    return context.tick if isinstance(context, JobContext) else None
