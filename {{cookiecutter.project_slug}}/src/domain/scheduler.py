from enum import StrEnum


class RunOutcome(StrEnum):
    """The state of a run."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"  # the process stopped, or lost leadership
    LOST = "lost"  # the process died during the run, or could not record the outcome
    MISSED = "missed"  # later than the job's `misfire_grace_time`
    SKIPPED = "skipped"  # the previous run had not finished
