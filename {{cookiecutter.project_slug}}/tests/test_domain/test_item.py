import pytest

from src.domain.item import (
    ItemArchivedError,
    ItemStatus,
    ItemTransitionError,
    ensure_changeable,
)

DRAFT, ACTIVE, ARCHIVED = ItemStatus


@pytest.mark.parametrize(
    ("current", "wanted"),
    [(DRAFT, None), (DRAFT, ACTIVE), (DRAFT, ARCHIVED), (ACTIVE, ACTIVE), (ACTIVE, ARCHIVED)],
)
def test_the_status_moves_forward(current: ItemStatus, wanted: ItemStatus | None) -> None:
    ensure_changeable(current, wanted)


def test_the_status_does_not_move_back() -> None:
    with pytest.raises(ItemTransitionError, match="active cannot become draft"):
        ensure_changeable(ACTIVE, DRAFT)


@pytest.mark.parametrize("wanted", [None, *ItemStatus])
def test_archived_is_final(wanted: ItemStatus | None) -> None:
    with pytest.raises(ItemArchivedError):
        ensure_changeable(ARCHIVED, wanted)
