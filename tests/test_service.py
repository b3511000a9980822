"""The template's own code is clean; so is the service, un-rendered, and its slow tests pass."""

from pathlib import Path

import pytest

from tests.project import REPOSITORY, SERVICE
from tests.subprocesses import UNTOUCHED, run
from tests.test_variants import CHECKS, WITHOUT_FUZZER

UNRENDERED = REPOSITORY / SERVICE


def test_slow_tests_pass(tmp_path: Path) -> None:
    """Kills, races and rights of servers: once, since no answer changes what they are about."""
    options = ["--override-ini", f"cache_dir={tmp_path / 'cache'}", "-m", "slow"]
    # More than there are processors: these tests mostly wait.
    run(
        "pytest",
        "--quiet",
        "--numprocesses",
        "4",
        *options,
        cwd=UNRENDERED,
        env=WITHOUT_FUZZER | UNTOUCHED,
    )


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_template_is_clean(command: str) -> None:
    """The template's own code passes what it asks of the service."""
    run(*command.split(), cwd=REPOSITORY)


@pytest.mark.parametrize("check", CHECKS)
def test_service_is_clean_as_it_is(check: str) -> None:
    """With its conditions in it, and nothing left in its folder."""
    caches = REPOSITORY / ".mypy_cache" / "service", REPOSITORY / ".ruff_cache" / "service"
    env = dict(zip(("MYPY_CACHE_DIR", "RUFF_CACHE_DIR"), map(str, caches), strict=True))
    run(*CHECKS[check], cwd=UNRENDERED, env=env | UNTOUCHED)
