"""The rules of an item's life: draft, then active, then archived, and never back."""

from enum import StrEnum
from uuid import UUID

from src.domain.errors import ConflictError, NotFoundError


class ItemStatus(StrEnum):
    DRAFT = "draft"
    ACTIVE = "active"
    ARCHIVED = "archived"


_NEXT = {
    ItemStatus.DRAFT: {ItemStatus.ACTIVE, ItemStatus.ARCHIVED},
    ItemStatus.ACTIVE: {ItemStatus.ARCHIVED},
    ItemStatus.ARCHIVED: set[ItemStatus](),
}


class ItemNotFoundError(NotFoundError):
    code = "item-not-found"
    title = "No such item"

    def __init__(self, item_id: UUID) -> None:
        super().__init__(f"There is no item {item_id}.")


class ItemArchivedError(ConflictError):
    code = "item-archived"
    title = "Item is archived"

    def __init__(self) -> None:
        super().__init__("An archived item cannot be changed.")


class ItemTransitionError(ConflictError):
    code = "item-transition"
    title = "No such step in an item's life"

    def __init__(self, current: ItemStatus, wanted: ItemStatus) -> None:
        super().__init__(f"An item that is {current} cannot become {wanted}.")


def ensure_changeable(current: ItemStatus, wanted: ItemStatus | None = None) -> None:
    """Check that an item may be changed at all, and may take the status `wanted`.

    Raises ItemArchivedError or ItemTransitionError.
    """
    if current is ItemStatus.ARCHIVED:
        raise ItemArchivedError
    if wanted not in {None, current} and wanted not in _NEXT[current]:
        raise ItemTransitionError(current, ItemStatus(wanted))
