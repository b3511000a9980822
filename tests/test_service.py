"""The template's own code is clean; so is the service, un-rendered, and its slow tests pass."""

from pathlib import Path

import pytest

from tests import commands
from tests.baked import REPOSITORY, SERVICE
from tests.test_variants import CHECKS, WITHOUT_FUZZER

UNRENDERED = REPOSITORY / SERVICE


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_template_is_clean(command: str, tmp_path: Path) -> None:
    """The template's own code passes what it asks of the service."""
    commands.run(*command.split(), cwd=REPOSITORY, scratch=tmp_path)


@pytest.mark.parametrize("check", CHECKS)
def test_service_is_clean_as_it_is(check: str, tmp_path: Path) -> None:
    """With its conditions in it, and nothing left in its folder."""
    caches = REPOSITORY / ".mypy_cache" / "service", REPOSITORY / ".ruff_cache" / "service"
    env = dict(zip(("MYPY_CACHE_DIR", "RUFF_CACHE_DIR"), map(str, caches), strict=True))
    commands.run(*CHECKS[check], cwd=UNRENDERED, scratch=tmp_path, env=env)


def test_slow_tests_pass(tmp_path: Path) -> None:
    """Kills, races and rights of servers: once, since no answer changes what they are about."""
    options = ["--override-ini", f"cache_dir={tmp_path / 'cache'}", "-m", "slow"]
    # More than there are processors: these tests mostly wait.
    command = ["pytest", "--quiet", "--numprocesses", "4", *options]
    commands.run(*command, cwd=UNRENDERED, scratch=tmp_path, env=WITHOUT_FUZZER)
