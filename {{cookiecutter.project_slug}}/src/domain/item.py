"""The status of an item: draft, then active, then archived, and never back."""

from enum import StrEnum

from src.domain.errors import ConflictError, NotFoundError


class ItemStatus(StrEnum):
    DRAFT = "draft"
    ACTIVE = "active"
    ARCHIVED = "archived"


TRANSITIONS = {
    ItemStatus.DRAFT: {ItemStatus.ACTIVE, ItemStatus.ARCHIVED},
    ItemStatus.ACTIVE: {ItemStatus.ARCHIVED},
    ItemStatus.ARCHIVED: set[ItemStatus](),
}


class ItemNotFoundError(NotFoundError):
    code = "item-not-found"
    title = "Item not found"
    message = "There is no item {id}."


class ItemArchivedError(ConflictError):
    code = "item-archived"
    title = "Item is archived"
    message = "An archived item cannot be changed."


class ItemTransitionError(ConflictError):
    code = "item-transition"
    title = "Invalid status transition"
    message = "An item that is {current} cannot become {wanted}."


def ensure_changeable(current: ItemStatus, wanted: ItemStatus | None = None) -> None:
    """Check that an item may be changed at all, and may take the status `wanted`.

    Raises ItemArchivedError or ItemTransitionError.
    """
    if current is ItemStatus.ARCHIVED:
        raise ItemArchivedError
    if wanted not in {None, current} and wanted not in TRANSITIONS[current]:
        raise ItemTransitionError(current=current, wanted=ItemStatus(wanted))
