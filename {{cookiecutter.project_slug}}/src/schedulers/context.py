"""What a job finds: it takes no arguments. See also `src.core.context`."""

from dataclasses import dataclass
from datetime import datetime

from src.core.context import Context, current_context, transaction, use_context
from src.core.context import current_settings as job_settings

__all__ = ["JobContext", "job_settings", "job_tick", "transaction", "use_context"]


@dataclass(frozen=True)
class JobContext(Context):
    tick: datetime | None = None


def job_tick() -> datetime | None:
    """Return when this run was due, which may be a while ago; none outside the scheduler."""
    context = current_context()
    return context.tick if isinstance(context, JobContext) else None
