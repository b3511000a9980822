"""Fixtures: a clean copy of the template, projects made from it, and a terminal for commands."""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cookiecutter import generate
from jinja2 import Environment
from pytest_cookies.plugin import Cookies
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling, Scheduling

from tests.project import REPOSITORY, BakedProject, Terminal
from tests.variants import SETS, VARIANTS, chosen

# With it, each of the hundreds of processes would compile all modules of a project.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

Bake = Callable[..., BakedProject]
VARIANT = re.compile(rf"\[({'|'.join(VARIANTS)})\b")
LONGEST = ["test_service.py", "test_variants.py"]  # run first, so that short tests fill the end


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only",
        default="",
        metavar="CONDITIONS",
        help="test only matching variants, in full: 'cache_backend=file,none task_queue=redis'",
    )
    parser.addoption(
        "--all", action="store_true", help="run the own tests of each triple, not only each pair"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests marked `variants("pairs")` with the variants of that set."""
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
    """Run all tests of a variant, and other tests of a file, in one worker, which renders once.

    xdist's marks for this need an attribute of tests that pytest 9.2 removed.
    """

    def _split_scope(self, nodeid: str) -> str:
        variant = VARIANT.search(nodeid)
        return variant[1] if variant else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    config.option.loadscopereorder = False  # xdist would run the files with most tests first
    return ByVariant(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_xdist_auto_num_workers() -> int:
    """Use one worker more than processors, because tests often wait for servers."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the template with the files that git tracks or would add, without caches."""
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
def _compile_once() -> Iterator[None]:
    """Read and compile each file of the template once: most of the time to render a project."""
    compile_text: Any = Environment.compile
    compiled: dict[Any, Any] = {}

    def compile_once(self: Environment, source: str, *names: str | None, **options: Any) -> Any:
        key = (self.line_statement_prefix, source, *names, *options.items())
        if key not in compiled:
            compiled[key] = compile_text(self, source, *names, **options)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "compile", compile_once)
        patch.setattr(generate, "is_binary", functools.cache(generate.is_binary))
        yield


@pytest.fixture(scope="session")
def render(cookies_session: Cookies, template: Path, _compile_once: None) -> Bake:
    """Return a function that returns a project to read; equal answers share one project."""

    @functools.cache
    def render(**answers: object) -> BakedProject:
        result = cookies_session.bake(extra_context=answers, template=str(template))
        assert result.exception is None, result.exception
        return BakedProject(result.project_path, result.context)

    return render


@pytest.fixture(scope="session")
def bake(render: Bake, tmp_path_factory: pytest.TempPathFactory) -> Bake:
    """Return a function that returns a project that the test may change."""

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
