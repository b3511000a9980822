"""The file format of an import: CSV in UTF-8, with a header and a row for each item."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat

from src.domain.errors import DomainError, NotFoundError

REQUIRED = ("name",)
COLUMNS = (*REQUIRED, "description")
EXTRA_COLUMN = "extra column"  # name of each column that the header does not have
MAX_ROWS = 10_000
MAX_REJECTIONS = 100
_MAX_NAME_LENGTH = 40  # characters of an unknown column name in an error


class ItemImportNotFoundError(NotFoundError):
    code = "item-import-not-found"
    title = "Import not found"
    message = "There is no import {id}."


class ImportFileError(DomainError):
    code = "import-file"
    title = "Invalid import file"


@dataclass(frozen=True)
class Row:
    number: int  # as in a spreadsheet: the header is row 1
    cells: dict[str, str]  # by column name, without empty cells


@dataclass(frozen=True)
class Progress:
    """Numbers of rows. `done` is the sum of `created` and `rejected`."""

    done: int
    total: int
    created: int
    rejected: int
    is_finished: bool


def count_rows(content: bytes) -> int:
    """Check the format of the file and count its rows. Raises ImportFileError."""
    count = sum(1 for _ in islice(read_rows(content), MAX_ROWS + 1))
    if count == 0:
        raise ImportFileError("The file has no rows below its header.")
    if count > MAX_ROWS:
        raise ImportFileError(f"The file has more than {MAX_ROWS} rows: split it.")
    return count


def read_rows(content: bytes) -> Iterator[Row]:
    """Yield the rows that are not empty, in order. Raises ImportFileError."""
    records = _records(content)
    columns = _columns(next(records, []))
    for number, record in enumerate(records, start=2):
        if any(record):
            pairs = zip(chain(columns, repeat(EXTRA_COLUMN)), record, strict=False)
            yield Row(number, {column: cell for column, cell in pairs if cell})


def _records(content: bytes) -> Iterator[list[str]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportFileError("The file is not encoded in UTF-8.") from error
    # Strict: otherwise a missing quote would make all the rows after it part of one cell.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise ImportFileError(f"Line {reader.line_num}: {error}.") from error


def _columns(header: Sequence[str]) -> list[str]:
    names = [name.strip() for name in header]
    for name in names:
        if name not in COLUMNS:
            raise ImportFileError(
                f"Unknown column {name[:_MAX_NAME_LENGTH]!r}. Use {', '.join(COLUMNS)}."
            )
    if len(set(names)) < len(names) or not set(REQUIRED) <= set(names):
        required = ", ".join(REQUIRED)
        raise ImportFileError(
            f"The header must name each column once and contain the column {required}."
        )
    return names
