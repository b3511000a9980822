import pytest

from src.domain.errors import DomainError
from src.domain.item_import import (
    BEYOND_HEADER,
    MAX_ROWS,
    NoHeaderError,
    NoRowsError,
    NotCsvError,
    Row,
    TooManyRowsError,
    UnknownColumnError,
    count_rows,
    read_rows,
)

LAMP = {"name": "Lamp", "description": "Brass"}


@pytest.mark.parametrize(
    "content",
    [
        b"name,description\nLamp,Brass\n",
        b"name,description\nLamp,Brass",
        b"name,description\r\nLamp,Brass\r\n",
        b"name,description\rLamp,Brass\r",
        b"description,name\nBrass,Lamp\n",
        b" name , description \nLamp,Brass\n",
        b'"name","description"\n"Lamp","Brass"\n',
        b"\xef\xbb\xbfname,description\nLamp,Brass\n",
        b'\xef\xbb\xbf"name",description\nLamp,Brass\n',
    ],
)
def test_ways_to_write_the_same(content: bytes) -> None:
    assert list(read_rows(content)) == [Row(2, LAMP)]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (b'"Lamp, brass"', "Lamp, brass"),
        (b'"Lamp\nbrass"', "Lamp\nbrass"),
        (b'"Lamp\r\nbrass"', "Lamp\r\nbrass"),
        (b'"The ""Lamp"""', 'The "Lamp"'),
        (b'12" Lamp', '12" Lamp'),
        ("Lämpchen 💡".encode(), "Lämpchen 💡"),
        (b"La\0mp", "La\0mp"),
    ],
)
def test_what_a_cell_may_hold(cell: bytes, expected: str) -> None:
    rows = list(read_rows(b"name\n" + cell + b"\nnext\n"))

    assert rows == [Row(2, {"name": expected}), Row(3, {"name": "next"})]


def test_a_cell_that_is_empty_or_missing_is_left_out() -> None:
    rows = list(read_rows(b"name,description\nLamp,\nLamp\n,Brass\n"))

    assert [row.cells for row in rows] == [
        {"name": "Lamp"},
        {"name": "Lamp"},
        {"description": "Brass"},
    ]


def test_empty_rows_are_none_and_yet_numbered() -> None:
    """As a spreadsheet shows them."""
    content = b"name,description\n\nLamp,\n,\n\r\nLight,\n\n"

    assert [row.number for row in read_rows(content)] == [3, 6]
    assert count_rows(content) == 2


def test_a_cell_beyond_the_header_is_not_lost() -> None:
    (row,) = read_rows(b"name\nLamp,,Brass\n")

    assert row.cells == {"name": "Lamp", BEYOND_HEADER: "Brass"}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", NoHeaderError, "name"),
        (b"\nname\nLamp\n", NoHeaderError, "name"),
        (b"description\nBrass\n", NoHeaderError, "name"),
        (b"name,name\nLamp,Light\n", NoHeaderError, "once"),
        (b"name,price\nLamp,12\n", UnknownColumnError, "'price'"),
        (b"name,\nLamp,\n", UnknownColumnError, "''"),
        (b"name;description\nLamp;Brass\n", UnknownColumnError, "'name;description'"),
        (b"Lamp,Brass\n", UnknownColumnError, "'Lamp'"),
        (b"x" * 100_000, UnknownColumnError, "'" + "x" * 40 + "' "),
        ("name\nLamp\n".encode("utf-16"), NotCsvError, "UTF-8"),
        ("name\nLamp\n".encode("utf-16-le"), UnknownColumnError, "x00"),
        (b"name\nL\xe4mpchen\n", NotCsvError, "UTF-8"),
        (b'name\n"Lamp\nLight\n', NotCsvError, "Line 3"),
        (b'name\n"Lamp" brass\n', NotCsvError, "Line 2"),
        (b"name\n" + b"x" * 200_000, NotCsvError, "Line 2"),
        (b"name\n", NoRowsError, "no rows"),
        (b"name,description\n\n,\n", NoRowsError, "no rows"),
        (b"name\n" + b"Lamp\n" * (MAX_ROWS + 1), TooManyRowsError, str(MAX_ROWS)),
    ],
)
def test_what_is_no_file_of_items(content: bytes, error: type[DomainError], message: str) -> None:
    with pytest.raises(error, match=message):
        count_rows(content)


def test_as_many_rows_as_there_may_be() -> None:
    assert count_rows(b"name\n" + b"Lamp\n" * MAX_ROWS) == MAX_ROWS


def test_what_is_behind_the_last_row_counts_for_none() -> None:
    assert count_rows(b"name\n" + b"Lamp\n" * MAX_ROWS + b"\n" * 1000) == MAX_ROWS
