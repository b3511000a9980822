from enum import StrEnum


class RunOutcome(StrEnum):
    """The state of one tick of a job."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"  # the process stopped, or lost leadership
    LOST = "lost"  # the process died during the run
    MISSED = "missed"  # too late, by the job's `misfire_grace_time`
    SKIPPED = "skipped"  # the run before had not finished
