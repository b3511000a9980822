from datetime import date

from src.domain.errors import ConflictError, NotFoundError


class ItemReportNotFoundError(NotFoundError):
    code = "item-report-not-found"
    title = "No such report"

    def __init__(self, day: date) -> None:
        super().__init__(f"No report on {day} has been made.")


class ItemReportTooEarlyError(ConflictError):
    code = "item-report-too-early"
    title = "The day has not begun"

    def __init__(self, day: date) -> None:
        super().__init__(f"{day} has not begun in UTC, so there is nothing to report on.")


def ensure_begun(day: date, *, today: date) -> None:
    """Raises ItemReportTooEarlyError."""
    if day > today:
        raise ItemReportTooEarlyError(day)
