from enum import StrEnum


class RunOutcome(StrEnum):
    """What became of one tick of a job."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"  # the process stopped, or lost the lead
    LOST = "lost"  # the process died as it ran
    MISSED = "missed"  # it came too late, by the job's own policy
    SKIPPED = "skipped"  # the run before was not over
