"""The status of an item, and the rules for changing it."""

from enum import StrEnum

from src.domain.errors import ConflictError, NotFoundError


class ItemSort(StrEnum):
    NEWEST = "-created_at"
    OLDEST = "created_at"
    NAME = "name"
    NAME_DESCENDING = "-name"


class ItemStatus(StrEnum):
    """The status moves forward only, from `draft` to `active` to `archived`."""

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
    title = "Item archived"
    message = "An archived item cannot be changed."


class ItemTransitionError(ConflictError):
    code = "item-transition"
    title = "Invalid status transition"
    message = "An item with the status {current} cannot become {wanted}."


def ensure_changeable(current: ItemStatus, wanted: ItemStatus | None = None) -> None:
    """Check that an item may change, and may get the status `wanted`.

    Raises ItemArchivedError or ItemTransitionError.
    """
    if current is ItemStatus.ARCHIVED:
        raise ItemArchivedError
    if wanted not in {None, current} and wanted not in TRANSITIONS[current]:
        raise ItemTransitionError(current=current, wanted=ItemStatus(wanted))
