import uuid
from datetime import datetime
from typing import Annotated, Self

from pydantic import (
    MISSING,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from src.domain.item import ItemSort, ItemStatus
from src.schemas.text import Text

ItemName = Annotated[
    Text,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    Field(description="The item's name.", examples=["Lamp"]),
]
ItemDescription = Annotated[Text, StringConstraints(max_length=10_000)]
_DESCRIPTION_EXAMPLES = ["Brass, with a green shade"]


class ItemCreate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: ItemName
    description: ItemDescription | None = Field(
        default=None, description="Free text about the item.", examples=_DESCRIPTION_EXAMPLES
    )


class ItemUpdate(BaseModel):
    """Omitted fields do not change; `"description": null` removes the description."""

    model_config = ConfigDict(extra="forbid")

    name: ItemName | MISSING = MISSING
    description: ItemDescription | MISSING | None = Field(
        default=MISSING,
        description="Free text about the item. `null` removes it.",
        examples=_DESCRIPTION_EXAMPLES,
    )
    status: ItemStatus | MISSING = Field(default=MISSING, description="The new status.")


class ItemResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID = Field(description="The item's ID, a UUIDv7.")
    name: str = Field(description="The item's name.", examples=["Lamp"])
    description: str | None = Field(
        description="Free text about the item.", examples=_DESCRIPTION_EXAMPLES
    )
    status: ItemStatus = Field(description="The item's status.")
    version: int = Field(
        description="Increases with every change. The `ETag` header has the same number.",
        examples=[3],
    )
    created_at: datetime = Field(description="When the item was created.")
    updated_at: datetime = Field(description="When the item was last changed.")


class _Slice(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=100, description="Maximum number of items.")
    offset: int = Field(default=0, ge=0, le=10_000, description="Number of items to skip.")


class ItemListQuery(_Slice):
    cursor: Text | None = Field(
        default=None,
        max_length=2000,
        description="The `next_cursor` of the previous page. Do not combine it with `offset`.",
    )
    status: ItemStatus | None = Field(
        default=None, description="Return only items with this status."
    )
    created_from: AwareDatetime | None = Field(
        default=None, description="Return only items created at this time or later."
    )
    created_before: AwareDatetime | None = Field(
        default=None, description="Return only items created before this time."
    )
    sort: ItemSort = Field(
        default=ItemSort.NEWEST, description="The sort order; `-` means descending."
    )
    total: bool = Field(
        default=False, description="Count the matching items, up to 10,001, with a second query."
    )

    @model_validator(mode="after")
    def _check_paging(self) -> Self:
        if self.cursor is not None and self.offset:
            raise ValueError("Use either cursor or offset, not both.")
        return self


class ItemSearchQuery(_Slice):
    q: Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)] = (
        Field(
            description="Words that the name or description must contain. The last word may be"
            " incomplete.",
            examples=["brass lam"],
        )
    )


class ItemPage(BaseModel):
    items: list[ItemResponse] = Field(description="The items of this page.")
    next_cursor: str | None = Field(
        description="Pass this as `cursor` to get the next page. `null` on the last page."
    )
    total: int | None = Field(
        default=None,
        description="The number of all matching items, where 10,001 means more than 10,000."
        " `null` unless `total=true`.",
        examples=[42],
    )


class ItemMatches(BaseModel):
    items: list[ItemResponse] = Field(description="The matching items, best match first.")
