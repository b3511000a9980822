"""Fixtures: a clean copy of the template, bakes of it, and a terminal to run commands in."""

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_cookies.plugin import Cookies

from tests.baked import REPOSITORY, BakedProject, Terminal

Bake = Callable[..., BakedProject]
pytest_plugins = ["tests.progress", "tests.scheduling"]


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
def bake(
    cookies_session: Cookies, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bake:
    """Return a function that scaffolds a project with the given answers.

    It renders once for the same answers, and gives each caller a copy to do with as it likes.
    """

    @functools.cache
    def rendered(**answers: object) -> BakedProject:
        result = cookies_session.bake(extra_context=answers, template=str(template))
        assert result.exception is None, result.exception
        return BakedProject(result.project_path, result.context)

    def bake(**answers: object) -> BakedProject:
        project = rendered(**answers)
        folder = tmp_path_factory.mktemp("bake") / project.path.name
        return BakedProject(shutil.copytree(project.path, folder), project.answers)

    return bake


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    for name in ("home", "tmp", "work"):
        (tmp_path / "terminal" / name).mkdir(parents=True)
    return Terminal(tmp_path / "terminal")
