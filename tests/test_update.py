"""Replay, generation into an existing folder, and updates with cruft."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Bake
from tests.project import REPOSITORY, SERVICE, Terminal, files_under


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


@pytest.fixture
def project(own_template: Path, terminal: Terminal) -> Path:
    """Return a project in git that cruft created from a template that the test may change."""
    terminal.commit(own_template, "template")
    answers = json.dumps(
        {"project_slug": "desk", "project_name": '"Desk" & Söhne', "ci_provider": "gitlab"}
    )
    done = terminal.cruft("create", own_template, "--no-input", "--extra-context", answers)
    assert done.returncode == 0, done.stdout + done.stderr
    terminal.commit(terminal.work / "desk", "project")
    return terminal.work / "desk"


def test_a_fresh_project_is_up_to_date(project: Path, terminal: Terminal) -> None:
    """`cruft check` succeeds, and `cruft update` changes nothing."""
    assert terminal.cruft("check", "--project-dir", project).returncode == 0
    assert "up to date" in terminal.cruft("update", "--project-dir", project).stdout


def test_an_update_merges_changes_of_the_template_and_the_user(
    own_template: Path, project: Path, terminal: Terminal
) -> None:
    """Both edit the same file. Unselected files do not return."""
    with (own_template / SERVICE / ".gitignore").open("a", encoding="utf-8") as file:
        file.write("/from-the-template/\n")
    (own_template / SERVICE / "news.md").write_text(
        "For {{ cookiecutter.project_name }}\n", "utf-8"
    )
    terminal.commit(own_template, "change")
    ignored = project / ".gitignore"
    ignored.write_text("/from-the-user/\n" + ignored.read_text("utf-8"), "utf-8")
    terminal.commit(project, "edit")
    before = set(files_under(project))

    assert terminal.cruft("check", "--project-dir", project).returncode == 1
    done = terminal.cruft("update", "--skip-apply-ask", "--project-dir", project)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Next steps" not in done.stdout
    lines = ignored.read_text("utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("/from-the-user/", "/from-the-template/")
    assert (project / "news.md").read_text("utf-8") == 'For "Desk" & Söhne\n'
    assert set(files_under(project)) == {*before, Path("news.md")}
    assert terminal.cruft("check", "--project-dir", project).returncode == 0


def version_of(cookiecutter_json: str) -> str:
    return str(json.loads(cookiecutter_json).get("_version", ""))


@pytest.fixture
def released(terminal: Terminal) -> Path:
    """Return a clone of the template at the previous release."""
    repository = terminal.root / "fastapi-ignite"
    terminal.git(terminal.root, "clone", "--quiet", REPOSITORY, repository)
    now = version_of((REPOSITORY / "cookiecutter.json").read_text("utf-8"))
    commits = terminal.git(repository, "log", "--format=%H", "--", "cookiecutter.json").split()
    for commit in commits:
        version = version_of(terminal.git(repository, "show", f"{commit}:cookiecutter.json"))
        if version not in {"", now} and "dev" not in version:
            terminal.git(repository, "checkout", "--quiet", "-B", "main", commit)
            return repository
    pytest.skip("the git history has no release: fetch all of it")


@pytest.mark.parametrize(
    "answers",
    [{}, {"cache_backend": "file", "task_queue": "rabbitmq", "ci_provider": "gitlab"}],
    ids=["default", "other"],
)
def test_an_update_from_the_previous_release_keeps_local_edits(
    bake: Bake, template: Path, released: Path, terminal: Terminal, answers: dict[str, str]
) -> None:
    """Everything else equals a new project, including the template's version."""
    given = json.dumps({"project_slug": "desk"} | answers)
    terminal.cruft("create", released, "--no-input", "--extra-context", given)
    project = terminal.work / "desk"
    ignored, own = project / ".gitignore", project / "src/domain/price.py"
    ignored.write_text("/from-the-user/\n" + ignored.read_text("utf-8"), "utf-8")
    own.write_text("CURRENCY = 'EUR'\n", "utf-8")
    terminal.commit(project, "edit")
    replace_files(template, released)
    terminal.commit(released, "today")

    done = terminal.cruft("update", "--skip-apply-ask", "--project-dir", project)

    assert done.returncode == 0, done.stdout + done.stderr
    fresh = contents(bake(project_slug="desk", **answers).path)
    updated = contents(project)
    fresh[Path(".gitignore")] = b"/from-the-user/\n" + fresh[Path(".gitignore")]
    fresh[Path("src/domain/price.py")] = b"CURRENCY = 'EUR'\n"
    del updated[Path(".cruft.json")]
    assert updated == fresh


def replace_files(template: Path, repository: Path) -> None:
    """Replace all files of the repository."""
    for path in repository.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(template, repository, dirs_exist_ok=True)
