import pytest

from src.domain.item_import import (
    EXTRA_COLUMN,
    MAX_ROWS,
    ImportFileError,
    Row,
    count_rows,
    read_rows,
)


@pytest.mark.parametrize(
    "content",
    [
        b"name,description\nLamp,Brass",
        b"name,description\r\nLamp,Brass\r\n",
        b" description , name \nBrass,Lamp\n",
        b'\xef\xbb\xbf"name",description\n"Lamp",Brass\n',
    ],
)
def test_format_variants_are_accepted(content: bytes) -> None:
    assert list(read_rows(content)) == [Row(2, {"name": "Lamp", "description": "Brass"})]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (b'"Lamp\r\nbrass, ""polished"""', 'Lamp\r\nbrass, "polished"'),
        (b'12" Lamp', '12" Lamp'),
        ("Lämpchen 💡".encode(), "Lämpchen 💡"),
        (b"La\0mp", "La\0mp"),
    ],
)
def test_quotes_newlines_and_special_characters(cell: bytes, expected: str) -> None:
    rows = list(read_rows(b"name\n" + cell + b"\nnext\n"))

    assert rows == [Row(2, {"name": expected}), Row(3, {"name": "next"})]


def test_empty_rows_are_skipped_but_numbered_and_extra_cells_are_kept() -> None:
    rows = list(read_rows(b"name,description\n\nLamp,\n,\n\r\n,Brass\nLamp,,Brass\n\n"))

    assert rows == [
        Row(3, {"name": "Lamp"}),
        Row(6, {"description": "Brass"}),
        Row(7, {"name": "Lamp", EXTRA_COLUMN: "Brass"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "name"),
        (b"description\nBrass\n", "name"),
        (b"name,name\nLamp,Light\n", "once"),
        (b"name;description\nLamp;Brass\n", "'name;description'"),
        (b"x" * 100_000, "'" + "x" * 40 + "'. Use"),
        ("name\nLamp\n".encode("utf-16"), "UTF-8"),
        (b'name\n"Lamp\nLight\n', "Line 3"),
        (b"name,description\n\n,\n", "no rows"),
        (b"name\n" + b"Lamp\n" * (MAX_ROWS + 1), str(MAX_ROWS)),
    ],
)
def test_invalid_files_are_rejected(content: bytes, message: str) -> None:
    with pytest.raises(ImportFileError, match=message):
        count_rows(content)
