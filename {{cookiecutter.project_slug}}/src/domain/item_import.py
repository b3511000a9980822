"""A file of items: CSV in UTF-8, the names of the columns first, then a row for each item."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from uuid import UUID

from src.domain.errors import DomainError, NotFoundError

REQUIRED = ("name",)
COLUMNS = (*REQUIRED, "description")
BEYOND_HEADER = "beyond the header"  # in the place of a column's name
MAX_ROWS = 10_000
MAX_REJECTIONS = 100
_LONGEST_NAME = 40  # characters of a column that an error repeats


class ItemImportNotFoundError(NotFoundError):
    code = "item-import-not-found"
    title = "No such import"

    def __init__(self, import_id: UUID) -> None:
        super().__init__(f"There is no import {import_id}.")


class NotCsvError(DomainError):
    code = "import-not-csv"
    title = "Not a CSV file"


class NoHeaderError(DomainError):
    code = "import-no-header"
    title = "No header"

    def __init__(self) -> None:
        required = ", ".join(REQUIRED)
        super().__init__(f"The first line must name each column once, and {required} among them.")


class UnknownColumnError(DomainError):
    code = "import-unknown-column"
    title = "Unknown column"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name[:_LONGEST_NAME]!r} is none of {', '.join(COLUMNS)}.")


class NoRowsError(DomainError):
    code = "import-no-rows"
    title = "Nothing to import"

    def __init__(self) -> None:
        super().__init__("The file has no rows.")


class TooManyRowsError(DomainError):
    code = "import-too-many-rows"
    title = "Too many rows"

    def __init__(self) -> None:
        super().__init__(f"The file has more than {MAX_ROWS} rows.")


@dataclass(frozen=True)
class Row:
    number: int  # as a spreadsheet counts: the header is 1
    cells: dict[str, str]  # by column; empty ones are left out


@dataclass(frozen=True)
class Progress:
    """How far an import has come, in rows; `done` are `created` or `rejected`."""

    done: int
    total: int
    created: int
    rejected: int
    is_over: bool


def count_rows(content: bytes) -> int:
    """Check the file as a whole, and count its rows.

    Raises NotCsvError, NoHeaderError, UnknownColumnError, NoRowsError or TooManyRowsError.
    """
    count = sum(1 for _ in islice(read_rows(content), MAX_ROWS + 1))
    if count == 0:
        raise NoRowsError
    if count > MAX_ROWS:
        raise TooManyRowsError
    return count


def read_rows(content: bytes) -> Iterator[Row]:
    """Read the rows that are not empty, in order.

    Raises NotCsvError, NoHeaderError or UnknownColumnError.
    """
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
        raise NotCsvError("The file is not in UTF-8.") from error
    # Strict, for a quote that is left open would swallow all the rows behind it.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise NotCsvError(f"Line {reader.line_num}: {error}.") from error


def _columns(header: Sequence[str]) -> list[str]:
    names = [name.strip() for name in header]
    for name in names:
        if name not in COLUMNS:
            raise UnknownColumnError(name)
    if len(set(names)) < len(names) or not set(REQUIRED) <= set(names):
        raise NoHeaderError
    return names
