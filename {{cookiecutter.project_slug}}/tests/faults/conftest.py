"""Tables of the faults, which the tests fill. `make faults` prints them."""

import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from src.core.config import ROOT
from tests.faults.load import Load

PAGES = ROOT / "docs"
HEADER = """\
| Fault | Requests | Failed | Latency p50 / p99 | Acknowledged | Well after |
|---|---|---|---|---|---|"""

Report = Callable[..., None]


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    def report(fault: str, load: Load | None, kept: str = "", seconds: float | None = None) -> None:
        columns = load.columns() if load else ("", "none", "")
        well = load.recovery_seconds if load else seconds
        row = (fault, *columns, kept, f"{well:.1f} s")
        record_property("row", f"| {' | '.join(row)} |")

    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the rows; with `WRITE=1`, also write them into the pages."""
    passed = terminalreporter.getreports("passed")
    rows = [row for each in passed for name, row in each.user_properties if name == "row"]
    if rows:
        terminalreporter.write_line("\n".join([HEADER, *rows]))
    if "WRITE" in os.environ:
        for page in PAGES.glob("*.md"):
            text = page.read_text(encoding="utf-8")
            for row in rows:
                name = re.escape(row.split("|")[1])
                text = re.sub(rf"^\|{name}\|.*$", row, text, flags=re.MULTILINE)
            page.write_text(text, encoding="utf-8")
