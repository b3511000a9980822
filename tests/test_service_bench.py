"""`make bench` of a generated service."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Bake
from tests.project import BakedProject
from tests.running import LENT, end
from tests.subprocesses import attempt, environment, run

LIVE = "/api/v1/health/live"
QUICK = {"SECONDS": "1", "CLIENTS": "4", "ENV_FILE": ""}
SINGLE = r" +[\d,]+" + r" +[\d,]+\.\d" * 3 + "  none\n"
COMPARED = r" +[\d,]+" * 2 + r" +\d+\.\d\d" * 3 + r" +[\d,]+\.\d" * 2 + "  none\n"
GIT = ("git", "-c", "user.name=Test", "-c", "user.email=test@localhost")


@pytest.fixture(scope="module")
def project(bake: Bake) -> BakedProject:
    """Return a service in a Git repository."""
    baked = bake(example="no")
    for command in ("init --quiet", "add --all", "commit --quiet --message=Start"):
        run(*GIT, *command.split(), cwd=baked.path)
    return baked


@pytest.fixture
def variables(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Yield variables of commands that must leave no file and no process."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    yield QUICK | {"TMPDIR": str(temporary)}
    assert not list(temporary.iterdir())
    listed = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True)
    assert str(temporary) not in listed.stdout


def bench(
    project: BakedProject, variables: dict[str, str], **options: str
) -> subprocess.CompletedProcess[str]:
    return attempt("make", "bench", *LENT, cwd=project.path, env=variables | options)


def test_endpoints_are_found_and_measured(project: BakedProject, variables: dict[str, str]) -> None:
    """A service without the example has some too. Without an argument, all succeed."""
    done = bench(project, variables)
    assert done.returncode == 0, done.stdout
    for path in (LIVE, "/api/v1/health/ready", "/api/v1/app-info"):
        assert re.search(f"^{path}{SINGLE}", done.stdout, re.MULTILINE), done.stdout
    assert "no success" not in done.stdout


def test_a_revision_is_compared_in_turns(project: BakedProject, variables: dict[str, str]) -> None:
    """It has its own code. What fails is reported, not hidden."""
    health = project.path / "src/api/v1/endpoints/health.py"
    before = health.read_text("utf-8")
    health.write_text(before.replace('"/health/live"', '"/health/alive"'), "utf-8")
    urls = "/api/v1/health/ready /api/v1/health/live /api/v1/health/alive"
    done = bench(project, variables, BASE="HEAD", URL=urls)
    health.write_text(before, "utf-8")
    assert re.search(f"^/api/v1/health/ready{COMPARED}", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"/health/live +no success: 404: [\d,]+\n", done.stdout)
    assert re.search(r"/health/alive +no success before: 404: [\d,]+\n", done.stdout)
    worktrees = run("git", "worktree", "list", cwd=project.path)
    assert worktrees.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"BASE": "nowhere"}, "Error: BASE=nowhere: not a valid object name: nowhere"),
        (
            {"URL": "items"},
            "Error: URL has items, which is neither a path nor starts with http://.",
        ),
        (
            {"URL": "http://127.0.0.1:1/"},
            "Error: Nothing accepts connections at http://127.0.0.1:1/.",
        ),
        ({"METHOD": "POST"}, "Error: METHOD=POST needs a URL, such as URL=/api/v1/notes/."),
        ({"CLIENTS": "0"}, "CLIENTS"),
    ],
)
def test_what_is_wrong_is_said_at_once(
    project: BakedProject, variables: dict[str, str], options: dict[str, str], message: str
) -> None:
    done = bench(project, variables, **options)
    assert done.returncode != 0
    assert message in done.stdout
    assert "Traceback" not in done.stdout
    assert "Starting" not in done.stdout


def test_base_needs_a_repository(bake: Bake, variables: dict[str, str], tmp_path: Path) -> None:
    variables["GIT_CEILING_DIRECTORIES"] = str(tmp_path.parent)
    done = bench(bake(), variables, BASE="main")
    assert "Error: BASE=main: not a git repository" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(
    project: BakedProject, variables: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "bench", *LENT],
            cwd=project.path,
            env=environment() | variables | {"SECONDS": "600", "URL": LIVE},
            stdout=output,
            stderr=output,
            process_group=0,
        )
    try:
        while LIVE not in log.read_text("utf-8"):
            assert process.poll() is None, log.read_text("utf-8")
            time.sleep(0.1)
        os.killpg(process.pid, number)
        process.wait(60)
    finally:
        end(process)
    assert "Traceback" not in log.read_text("utf-8")
