import uuid
from datetime import datetime

from pydantic import BaseModel, Field


class Rejection(BaseModel):
    row: int = Field(description="Row number. The header is row 1.", examples=[3])
    detail: str = Field(description="Why the row was rejected.", examples=["name: Field required"])


class ItemImportResponse(BaseModel):
    id: uuid.UUID = Field(description="ID of the import.")
    total: int = Field(description="Number of rows in the file.", examples=[250])
    done: int = Field(description="Number of rows imported or rejected so far.", examples=[100])
    rejected: int = Field(description="Number of rows rejected so far.", examples=[1])
    rejections: list[Rejection] = Field(description="The first 100 rejected rows.")
    created_at: datetime = Field(description="When the file was uploaded.")
