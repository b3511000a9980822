import uuid
from datetime import datetime
from typing import Annotated, Self

from pydantic import MISSING, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from src.domain.item import ItemStatus
from src.schemas.text import Text

ItemName = Annotated[
    Text,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    Field(description="Item name", examples=["Lamp"]),
]
ItemDescription = Annotated[
    Text,
    StringConstraints(max_length=10_000),
    Field(description="Item description", examples=["Brass, with a green shade"]),
]


class ItemCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: ItemName
    description: ItemDescription | None = None


class ItemUpdate(BaseModel):
    """Omitted fields do not change; `"description": null` removes the description."""

    model_config = ConfigDict(extra="forbid")

    name: ItemName | MISSING = MISSING
    description: ItemDescription | MISSING | None = MISSING
    status: ItemStatus | MISSING = MISSING


class ItemResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    name: str
    description: str | None
    status: ItemStatus
    version: int = Field(description="Increases with each change; the ETag.")
    created_at: datetime
    updated_at: datetime


class _Slice(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=100)
    offset: int = Field(default=0, ge=0, le=10_000, description="For deep pages use `cursor`.")


class ItemListQuery(_Slice):
    cursor: uuid.UUID | None = Field(
        default=None, description="The `next_cursor` of the previous page; not with `offset`."
    )
    status: ItemStatus | None = None
    total: bool = Field(default=False, description="Count all items, with another query.")

    @model_validator(mode="after")
    def _one_way_to_page(self) -> Self:
        if self.cursor is not None and self.offset:
            raise ValueError("give either cursor or offset")
        return self


class ItemSearchQuery(_Slice):
    q: Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)] = (
        Field(description="All words must match; the last one also as a prefix.")
    )


class ItemPage(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    items: list[ItemResponse]
    next_cursor: uuid.UUID | None = Field(description="Null on the last page.")
    total: int | None = Field(default=None, description="Only with `total=true`.")


class ItemMatches(BaseModel):
    items: list[ItemResponse]
