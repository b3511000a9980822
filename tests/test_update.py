"""Replay, generation into an existing folder, and updates with cruft."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import old_names
from tests import rows, user_work
from tests.conftest import Bake
from tests.project import REPOSITORY, Terminal, files_under
from tests.releases import releases
from tests.servers import serving
from tests.subprocesses import run

RELEASES = list(releases())
NAMES = old_names.names(old_names.CHANGELOG.read_text("utf-8"))
ROWS = {"0.4.0": {"task.status": "done"}}
NAMED = {"project_slug": "desk", "project_name": '"Desk" & Söhne'}
OTHER = {"cache_backend": "file", "task_queue": "rabbitmq", "ci_provider": "gitlab"}


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: (folder / file).read_bytes() for file in files_under(folder)}


def test_a_replay_gives_the_same_project(template: Path, terminal: Terminal) -> None:
    """`--replay` uses the stored answers and asks nothing."""
    project = terminal.work / "desk"
    terminal.cookiecutter(
        template, project_slug="desk", project_name='"Desk" & Söhne', license="GPL-3.0-or-later"
    )
    first = contents(project)
    project.rename(terminal.work / "first")
    done = terminal.replay(template)
    assert done.returncode == 0, done.stderr
    assert contents(project) == first


def test_an_existing_folder_is_not_overwritten(template: Path, terminal: Terminal) -> None:
    """cookiecutter prints an error, and the folder is unchanged."""
    terminal.cookiecutter(template)
    edited = terminal.work / "my-service" / "LICENSE"
    edited.write_text("mine", "utf-8")
    done = terminal.cookiecutter(template)
    assert done.returncode == 1
    assert '"my-service" directory already exists' in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert edited.read_text("utf-8") == "mine"


def test_overwrite_if_exists_restores_the_template_s_files(
    template: Path, terminal: Terminal
) -> None:
    """The user's own files are unchanged."""
    terminal.cookiecutter(template)
    project = terminal.work / "my-service"
    fresh = contents(project)
    (project / "LICENSE").write_text("mine", "utf-8")
    (project / "notes.txt").write_text("mine", "utf-8")
    done = terminal.cookiecutter(template, "--overwrite-if-exists")
    assert done.returncode == 0, done.stderr
    assert contents(project) == {**fresh, Path("notes.txt"): b"mine"}


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with serving("postgres") as url:
        yield url


@pytest.fixture(params=[(RELEASES[-1], {}), (RELEASES[0], OTHER)], ids=lambda param: param[0])
def created(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    """Return the release that a project is created from, and its answers."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def outdated(created: tuple[str, dict[str, str]], template: Path, terminal: Terminal) -> Path:
    """Return a project of a release with a user's work; there is a newer template."""
    release, answers = created
    repository = terminal.root / "fastapi-ignite"
    terminal.git(terminal.root, "clone", "--quiet", REPOSITORY, repository)
    terminal.git(repository, "checkout", "--quiet", "-B", "main", releases()[release])
    given = json.dumps(NAMED | answers)
    terminal.cruft("create", repository, "--no-input", "--extra-context", given)
    project = terminal.work / "desk"
    terminal.commit(project, "create")  # a merge needs the files as they were created
    user_work.write(user_work.files(release), project)
    user_work.add_migration(project)
    user_work.add_lines(project)
    terminal.commit(project, "edit")
    replace_files(template, repository)
    terminal.commit(repository, "today")
    return project


def test_an_update_keeps_a_user_s_work_and_rows(
    created: tuple[str, dict[str, str]],
    outdated: Path,
    bake: Bake,
    postgres: str,
    terminal: Terminal,
) -> None:
    """Nothing conflicts, and `old_names.py` finds what to change. Then everything works."""
    (release, answers), project = created, outdated
    before, now = user_work.files(release), user_work.files()
    url = asyncio.run(rows.create_database(postgres, release))
    migrate = ("alembic", "upgrade", "head")
    run(*migrate, cwd=project, env={"DATABASE_URL": url})
    stored = asyncio.run(rows.fill(url, **ROWS.get(release, {})))

    assert terminal.cruft("check", "--project-dir", project).returncode == 1
    done = terminal.cruft("update", "--skip-apply-ask", "--project-dir", project)

    assert done.returncode == 0, done.stdout + done.stderr
    assert terminal.cruft("check", "--project-dir", project).returncode == 0
    assert "Next steps" not in done.stdout
    assert "with conflicts" not in done.stdout + done.stderr
    assert list(project.rglob("*.rej")) == []
    run("python", "-m", "dev.relink_migrations", cwd=project)
    found = list(old_names.findings(project, NAMES))
    assert {each.partition(":")[0] for each in found} == {
        name for name in now if now[name] != before[name]
    }
    user_work.write(now, project)
    assert list(old_names.findings(project, NAMES)) == []
    fresh = bake(**NAMED, **answers).path
    user_work.write(now, fresh)
    user_work.add_lines(fresh)
    assert without_migrations(project) == without_migrations(fresh)

    run(*migrate, cwd=project, env={"DATABASE_URL": url})
    run("alembic", "check", cwd=project, env={"DATABASE_URL": url})
    assert stored.items() <= asyncio.run(rows.fill(url)).items()
    run("pytest", "-q", *user_work.TESTS, cwd=project, env={"DATABASE_URL": postgres})


def without_migrations(project: Path) -> dict[Path, bytes]:
    """Return the files of a project, without what an update changes in another way."""
    own = {".cruft.json", "alembic/versions", "alembic/kept_tables.txt"}
    return {
        file: text
        for file, text in contents(project).items()
        if "__pycache__" not in file.parts
        and own.isdisjoint({file.as_posix(), file.parent.as_posix()})
    }


def replace_files(template: Path, repository: Path) -> None:
    """Replace all files of the repository."""
    for path in repository.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(template, repository, dirs_exist_ok=True)
