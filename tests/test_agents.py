"""AGENTS.md of the template and of the service are short, and name only what exists.

The variants follow the service's file, see tests/test_variants.py.
"""

from pathlib import Path

import pytest

from tests.agents import AgentsFile, missing_paths
from tests.project import REPOSITORY, SERVICE
from tests.running import LENT
from tests.subprocesses import BINARIES, UNTOUCHED, run

TEMPLATE = AgentsFile((REPOSITORY / "AGENTS.md").read_text("utf-8"))
# Commands that run elsewhere: in which file, and with which words.
ELSEWHERE = {
    "make setup": (".github/workflows/ci.yml", "run: make setup\n"),
    "make quick": (".github/workflows/ci.yml", "run: make quick\n"),
    "make check": ("tests/test_service.py", 'run("make", "check"'),
    "make test": (".ci/run", "\nmake test\n"),
    "make lock": (".github/workflows/newest.yml", "run: make lock "),
}
# The tests that the commands select run anyway: here, they are only collected.
COLLECT = "--collect-only --quiet --quiet"


@pytest.mark.parametrize("folder", [".", SERVICE])
def test_file_is_short_and_claude_code_reads_it(folder: str) -> None:
    files = REPOSITORY / folder
    assert len((files / "AGENTS.md").read_text("utf-8").splitlines()) <= 100
    assert (files / "CLAUDE.md").read_text("utf-8") == "@AGENTS.md\n"


def test_paths_exist() -> None:
    """In the template, or in the service before it is rendered."""
    missing = [
        missing_paths(folder, TEMPLATE.paths) for folder in (REPOSITORY, REPOSITORY / SERVICE)
    ]
    assert set.intersection(*missing) == set()


@pytest.mark.parametrize("command", TEMPLATE.commands)
def test_command_works(command: str, own_template: Path) -> None:
    if command in ELSEWHERE:
        file, words = ELSEWHERE[command]
        assert words in (REPOSITORY / file).read_text("utf-8")
        return
    folder = own_template if "cookiecutter . " in command else REPOSITORY
    command = command.replace("../.venv", ".venv").replace(".venv/bin", str(BINARIES))
    if "pytest" in command:
        command += f" {COLLECT}"
    if command.startswith("make "):
        command += f" {' '.join(LENT)} PYTEST='{BINARIES}/pytest {COLLECT}'"
    run("bash", "-ec", command, cwd=folder, env=UNTOUCHED)
