"""`make bench` measures real processes, and updates the page of results."""

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.project import REPOSITORY
from tests.subprocesses import UNTOUCHED, attempt

SHORT = ("--rounds", "1", "--seconds", "0.2")
PAGE = """\
# Performance

## Endpoints over HTTP

Old results.

## Cache

Results of another part.
"""


def bench(*options: str | Path) -> subprocess.CompletedProcess[str]:
    return attempt("python", "benchmarks/run.py", *options, cwd=REPOSITORY, env=UNTOUCHED)


def rows_of(page: Path) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in page.read_text("utf-8").splitlines()]
    return {name: cells for name, *cells in lines if cells}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    page = tmp_path / "performance.md"
    page.write_text(PAGE, "utf-8")
    (tmp_path / "images").mkdir()
    return page


def test_results_replace_the_section_of_their_part(page: Path) -> None:
    done = bench("--only", "health", *SHORT, "--write", page)
    assert done.returncode == 0, done.stdout
    text = page.read_text("utf-8")
    assert "Old results." not in text
    assert text.endswith("\n\n## Cache\n\nResults of another part.\n")
    kinds = {"textbook", "textbook with features", "minimal", "default answers", "every feature"}
    assert kinds <= rows_of(page).keys()
    plot = ET.fromstring((page.parent / "images/performance.svg").read_text("utf-8"))  # noqa: S314 - our own
    assert "Health, beside textbook" in {each.text for each in plot.iter()}


def test_base_is_measured_in_the_same_run(page: Path) -> None:
    """Its temporary worktree is removed."""
    done = bench("--only", "memory", "--base", "HEAD", *SHORT, "--write", page)
    assert done.returncode == 0, done.stdout
    assert {"FastAPI and a dict", "memory cache", "HEAD memory cache", "now"} <= rows_of(
        page
    ).keys()
    worktrees = attempt("git", "worktree", "list", cwd=REPOSITORY).stdout
    assert "/bench-" not in worktrees


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--only", "health,lamp"], "ONLY=lamp is unknown: choose from endpoints, keys, "),
        (["--only", "health", "--base", "lamp"], "BASE=lamp is not a revision of this repository."),
        (["--only", "keys", "--base", "HEAD"], "BASE compares endpoints only: add one to ONLY."),
    ],
)
def test_invalid_options_get_one_sentence(options: list[str], says: str) -> None:
    done = bench(*options)
    assert done.returncode == 1
    assert says in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stdout
