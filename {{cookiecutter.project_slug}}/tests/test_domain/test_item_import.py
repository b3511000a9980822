import pytest

from src.domain.item_import import (
    BEYOND_HEADER,
    MAX_ROWS,
    ImportFileError,
    Row,
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
def test_spellings_of_one_file(content: bytes) -> None:
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
def test_cells(cell: bytes, expected: str) -> None:
    rows = list(read_rows(b"name\n" + cell + b"\nnext\n"))

    assert rows == [Row(2, {"name": expected}), Row(3, {"name": "next"})]


def test_empty_cells_are_left_out_and_extra_ones_are_kept() -> None:
    rows = list(read_rows(b"name,description\nLamp,\nLamp\n,Brass\nLamp,,Brass\n"))

    assert [row.cells for row in rows] == [
        {"name": "Lamp"},
        {"name": "Lamp"},
        {"description": "Brass"},
        {"name": "Lamp", BEYOND_HEADER: "Brass"},
    ]


def test_empty_rows_are_skipped_but_numbered() -> None:
    content = b"name,description\n\nLamp,\n,\n\r\nLight,\n\n"

    assert [row.number for row in read_rows(content)] == [3, 6]
    assert count_rows(content) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "name"),
        (b"\nname\nLamp\n", "name"),
        (b"description\nBrass\n", "name"),
        (b"name,name\nLamp,Light\n", "once"),
        (b"name,price\nLamp,12\n", "'price'"),
        (b"name,\nLamp,\n", "''"),
        (b"name;description\nLamp;Brass\n", "'name;description'"),
        (b"Lamp,Brass\n", "'Lamp'"),
        (b"x" * 100_000, "'" + "x" * 40 + "' "),
        ("name\nLamp\n".encode("utf-16"), "UTF-8"),
        ("name\nLamp\n".encode("utf-16-le"), "x00"),
        (b"name\nL\xe4mpchen\n", "UTF-8"),
        (b'name\n"Lamp\nLight\n', "Line 3"),
        (b'name\n"Lamp" brass\n', "Line 2"),
        (b"name\n" + b"x" * 200_000, "Line 2"),
        (b"name\n", "no rows"),
        (b"name,description\n\n,\n", "no rows"),
        (b"name\n" + b"Lamp\n" * (MAX_ROWS + 1), str(MAX_ROWS)),
    ],
)
def test_invalid_files(content: bytes, message: str) -> None:
    with pytest.raises(ImportFileError, match=message):
        count_rows(content)


@pytest.mark.parametrize("end", [b"", b"\n" * 1000])
def test_the_most_rows_that_a_file_may_have(end: bytes) -> None:
    assert count_rows(b"name\n" + b"Lamp\n" * MAX_ROWS + end) == MAX_ROWS
