"""The text of a principal is unique, and harmless in logs and headers."""

import pytest

from src.domain.principal import Principal, PrincipalKind


def text_of(id: str) -> str:  # noqa: A002 - as in Principal
    return str(Principal(PrincipalKind.API_KEY, id, frozenset()))


@pytest.mark.parametrize(
    "id", ["018f0000-0000-7000-8000-000000000000", "auth0|7", "ann@lamps.test"]
)
def test_common_ids_are_readable(id: str) -> None:  # noqa: A002
    assert text_of(id) == f"api-key:{id}"


@pytest.mark.parametrize(
    "id", ["a\nb", "a\r\nX-Admin: 1", "a b", "\x1b[31m", "ä", "\u2028", "\ud800", "\0", "a%0Ab", ""]
)
def test_others_cannot_add_lines_or_fields(id: str) -> None:  # noqa: A002
    text = text_of(id)

    assert text.isascii()
    assert text.isprintable()
    assert " " not in text


def test_different_ids_have_different_texts() -> None:
    ids = ["a b", "a%20b", "a+b", "ä", "%C3%A4", "\ud800", "%ED%A0%80"]

    assert len({text_of(id) for id in ids}) == len(ids)  # noqa: A001
