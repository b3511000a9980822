"""Checks of the template's code and of the un-rendered service, and the service's slow tests."""

from pathlib import Path

import pytest

from tests.conftest import Bake
from tests.project import REPOSITORY, SERVICE
from tests.running import LENT
from tests.subprocesses import UNTOUCHED, run, run_tests
from tests.test_render import patterns_of_unselected
from tests.test_variants import CHECKS, WITHOUT_FUZZER
from tests.variants import EVERYTHING

UNRENDERED = REPOSITORY / SERVICE


def test_slow_tests_pass(own_template: Path) -> None:
    """They run once, un-rendered, because no answer changes them."""
    # More workers than processors: these tests mostly wait.
    parallel = ["--numprocesses", "4"]
    run_tests("-m", "slow", cwd=own_template / SERVICE, env=WITHOUT_FUZZER, parallel=parallel)


def test_tests_that_projects_do_not_have_pass(own_template: Path, render: Bake) -> None:
    """Those that are not slow: the snippets of the service's pages run."""
    deleted = patterns_of_unselected(render(**EVERYTHING).answers)
    paths = [path for pattern in deleted for path in UNRENDERED.glob(pattern)]
    names = [str(path.relative_to(UNRENDERED)) for path in paths if path.name.startswith("test_")]
    run_tests("-m", "not slow", *names, cwd=own_template / SERVICE, env=WITHOUT_FUZZER)


def test_template_is_clean() -> None:
    """`make check` passes."""
    run("make", "check", *LENT, cwd=REPOSITORY)


@pytest.mark.parametrize("check", CHECKS)
def test_unrendered_service_is_clean(check: str) -> None:
    """The checks leave no file in its folder."""
    caches = REPOSITORY / ".mypy_cache" / "service", REPOSITORY / ".ruff_cache" / "service"
    env = dict(zip(("MYPY_CACHE_DIR", "RUFF_CACHE_DIR"), map(str, caches), strict=True))
    run(*CHECKS[check], cwd=UNRENDERED, env=env | UNTOUCHED)
