import uuid
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class Rejection(BaseModel):
    row: int = Field(description="As a spreadsheet counts: the header is row 1.")
    detail: str


class ItemImportResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    total: int = Field(description="Rows of the file.")
    done: int = Field(description="Rows that were looked at.")
    rejected: int = Field(description="Rows that became no item.")
    rejections: list[Rejection] = Field(description="The first hundred of these.")
    created_at: datetime
