"""A file of items: CSV in UTF-8, with a header and a row for each item."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat

from src.domain.errors import DomainError, NotFoundError

REQUIRED = ("name",)
COLUMNS = (*REQUIRED, "description")
BEYOND_HEADER = "beyond the header"  # stands for the name of a column that has none
MAX_ROWS = 10_000
MAX_REJECTIONS = 100
_LONGEST_NAME = 40  # characters of a column that an error repeats


class ItemImportNotFoundError(NotFoundError):
    code = "item-import-not-found"
    title = "Import not found"
    message = "There is no import {id}."


class ImportFileError(DomainError):
    code = "import-file"
    title = "Invalid import file"


@dataclass(frozen=True)
class Row:
    number: int  # as a spreadsheet counts: the header is 1
    cells: dict[str, str]  # by column; empty ones are left out


@dataclass(frozen=True)
class Progress:
    """Counts of rows; `done` are those `created` or `rejected`."""

    done: int
    total: int
    created: int
    rejected: int
    is_over: bool


def count_rows(content: bytes) -> int:
    """Check the file as a whole, and count its rows. Raises ImportFileError."""
    count = sum(1 for _ in islice(read_rows(content), MAX_ROWS + 1))
    if count == 0:
        raise ImportFileError("The file has no rows.")
    if count > MAX_ROWS:
        raise ImportFileError(f"The file has more than {MAX_ROWS} rows.")
    return count


def read_rows(content: bytes) -> Iterator[Row]:
    """Read the rows that are not empty, in order. Raises ImportFileError."""
    records = _records(content)
    columns = _columns(next(records, []))
    for number, record in enumerate(records, start=2):
        if any(record):
            pairs = zip(chain(columns, repeat(BEYOND_HEADER)), record, strict=False)
            yield Row(number, {column: cell for column, cell in pairs if cell})


def _records(content: bytes) -> Iterator[list[str]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportFileError("The file is not in UTF-8.") from error
    # Strict: an open quote would swallow all the rows behind it.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise ImportFileError(f"Line {reader.line_num}: {error}.") from error


def _columns(header: Sequence[str]) -> list[str]:
    names = [name.strip() for name in header]
    for name in names:
        if name not in COLUMNS:
            raise ImportFileError(f"{name[:_LONGEST_NAME]!r} is none of {', '.join(COLUMNS)}.")
    if len(set(names)) < len(names) or not set(REQUIRED) <= set(names):
        required = ", ".join(REQUIRED)
        raise ImportFileError(f"The first line must name each column once, including {required}.")
    return names
