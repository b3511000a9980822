from datetime import date, datetime

from pydantic import BaseModel, ConfigDict, Field

from src.domain.item import ItemStatus


class ItemReportResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    day: date = Field(description="In UTC.")
    created: int = Field(description="Items that were made on the day.")
    changed: int = Field(description="Items whose last change was on the day.")
    archived: int = Field(
        description="Items that were archived on the day; `changed` has them too."
    )
    totals: dict[ItemStatus, int] = Field(
        description="All items by status, as it was at `made_at`.",
        examples=[{"draft": 7, "active": 12, "archived": 3}],
    )
    made_at: datetime = Field(description="Items that were deleted before are not counted.")


class ItemReportCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    day: date | None = Field(default=None, description="In UTC; today if it is left out.")


class ItemReports(BaseModel):
    reports: list[ItemReportResponse]
