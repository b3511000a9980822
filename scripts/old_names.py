"""Find names of earlier releases in a project: `python scripts/old_names.py PROJECT`.

The names are in the first column of each table of `CHANGELOG.md` whose second column is `now`.
A name is found in code, in paths, and in files such as alert rules, whatever separates its words:
`outcome="done"` also finds `"outcome": "done"`, and `src.api.caching` also finds `src/api/caching`
and `from src.api import caching`.
"""

import argparse
import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"
TABLE = re.compile(r"^\| .* of ([\d.]+) \| now \|\n\|---\|---\|\n((?:\|.*\n)+)", re.MULTILINE)
ROW = re.compile(r"\| `([^`]+)` \| (.+) \|")
# Applied migrations never change, so `alembic/versions` keeps its old names.
SKIPPED = re.compile(r"\.git|\.?venv|\.data|node_modules|__pycache__|\..*_cache|versions")


class Name(NamedTuple):
    """A name that a release still had, and what the changelog says about it."""

    release: str
    old: str
    now: str

    @property
    def longest_word(self) -> str:
        return max((match[0] for match in re.finditer(r"\w+", self.old)), key=len)

    @property
    def pattern(self) -> re.Pattern[str]:
        words = r"\W{1,8}".join(re.findall(r"\w+|…", self.old)).replace("…", ".*")
        return re.compile(rf"(?<!\w){words}(?!\w)")

    def __str__(self) -> str:
        verb = "is" if self.now.startswith("gone") else "is now"
        return f"{self.old} {verb} {self.now.replace('`', '')}"


def names(changelog: str) -> list[Name]:
    return [
        Name(release, *row)
        for release, rows in TABLE.findall(changelog)
        for row in ROW.findall(rows)
    ]


def searched(path: Path) -> list[str]:
    """Return the lines of a file, each followed by the full names of its imports."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return []
    lines = text.split("\n")
    try:
        nodes = list(ast.walk(ast.parse(text))) if path.suffix == ".py" else []
    except SyntaxError:  # such as the markers of a conflict
        nodes = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            for imported in node.names:
                lines[imported.lineno - 1] += f" {node.module}.{imported.name}"
    return lines


def files(project: Path) -> Iterator[Path]:
    for folder, folders, found in os.walk(project):
        folders[:] = sorted(each for each in folders if not SKIPPED.fullmatch(each))
        yield from (Path(folder, each) for each in sorted(found))


def findings(project: Path, wanted: list[Name]) -> Iterator[str]:
    for path in files(project):
        lines = searched(path)
        text = "\n".join(lines)
        possible = [(each, each.pattern) for each in wanted if each.longest_word in text]
        for number, line in enumerate(lines, start=1):
            for name, pattern in possible:
                if pattern.search(line):
                    yield f"{path.relative_to(project)}:{number}: {name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("project", type=Path, help="a folder")
    project = parser.parse_args().project
    if not project.is_dir():
        parser.error(f"{project} is not a folder.")
    found = list(findings(project, names(CHANGELOG.read_text("utf-8"))))
    print("\n".join(found) or "No old names.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
