import uuid
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class Rejection(BaseModel):
    row: int = Field(description="Row number; the header is row 1.")
    detail: str


class ItemImportResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    total: int = Field(description="Rows of the file.")
    done: int = Field(description="Rows processed.")
    rejected: int = Field(description="Rows rejected.")
    rejections: list[Rejection] = Field(description="The first hundred rejected rows.")
    created_at: datetime
