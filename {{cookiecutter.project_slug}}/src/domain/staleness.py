"""Which items may be archived because nobody has touched them for long."""

from src.domain.errors import ConflictError
from src.domain.item import ItemStatus, ensure_changeable


def may_be_archived(status: ItemStatus) -> bool:
    try:
        ensure_changeable(status, ItemStatus.ARCHIVED)
    except ConflictError:
        return False
    return True


ARCHIVABLE = tuple(status for status in ItemStatus if may_be_archived(status))
