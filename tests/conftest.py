"""Fixtures: a clean copy of the template, projects made of it, and a terminal to run commands in."""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_cookies.plugin import Cookies
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling, Scheduling

from tests.project import REPOSITORY, BakedProject, Terminal
from tests.variants import SETS, VARIANTS, chosen

Bake = Callable[..., BakedProject]
VARIANT = re.compile(rf"\[({'|'.join(VARIANTS)})\b")
LONGEST = ["test_service.py", "test_variants.py"]  # to begin with, and to end with what is short


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only",
        default="",
        metavar="CONDITIONS",
        help="prove those variants in full that fit: 'cache_backend=file,none task_queue=redis'",
    )
    parser.addoption("--all", action="store_true", help="let more variants run their own tests")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that is marked `variants("pairs")` the variants of that set."""
    only = metafunc.config.getoption("--only")
    for mark in metafunc.definition.iter_markers("variants"):
        (wanted,) = mark.args
        if wanted == "pairs" and metafunc.config.getoption("--all"):
            wanted = "triples"
        try:
            variants = chosen(only) if only else SETS[wanted]
        except ValueError as error:
            raise pytest.UsageError(f"--only: {error}") from None
        metafunc.parametrize("variant", variants)


class ByVariant(LoadScopeScheduling):  # type: ignore[misc] # it has no types
    """Run what concerns a variant, and else what is in a file, in one worker: they share a render.

    xdist's own marks for this need an attribute of tests that pytest 9.2 no longer has.
    """

    def _split_scope(self, nodeid: str) -> str:
        variant = VARIANT.search(nodeid)
        return variant[1] if variant else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    config.option.loadscopereorder = False  # else what has most tests comes first
    return ByVariant(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: much of the time a service's tests wait for servers."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the template as a clone has it: what git knows or would add, no caches."""
    copy = tmp_path_factory.mktemp("clone") / "fastapi-ignite"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        encoding="utf-8",
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():  # git still lists a file that was deleted
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, copy / name)
    return copy


@pytest.fixture
def own_template(template: Path, tmp_path: Path) -> Path:
    """Return a copy of the template that the test may change."""
    return shutil.copytree(template, tmp_path / "fastapi-ignite")


@pytest.fixture(scope="session")
def render(cookies_session: Cookies, template: Path) -> Bake:
    """Return a function that scaffolds a project, to be read only: the same answers share one."""

    @functools.cache
    def render(**answers: object) -> BakedProject:
        result = cookies_session.bake(extra_context=answers, template=str(template))
        assert result.exception is None, result.exception
        return BakedProject(result.project_path, result.context)

    return render


@pytest.fixture(scope="session")
def bake(render: Bake, tmp_path_factory: pytest.TempPathFactory) -> Bake:
    """Return a function that scaffolds a project for the caller to do with as it likes."""

    def bake(**answers: object) -> BakedProject:
        project = render(**answers)
        folder = tmp_path_factory.mktemp("bake") / project.path.name
        return BakedProject(shutil.copytree(project.path, folder), project.answers)

    return bake


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    for name in ("home", "tmp", "work"):
        (tmp_path / "terminal" / name).mkdir(parents=True)
    return Terminal(tmp_path / "terminal")
