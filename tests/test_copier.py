"""Copier gives the same project as cookiecutter, refuses the same answers, and updates a project."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import copier
import pytest
import yaml
from jinja2 import Environment, FileSystemLoader
from jinja2_ansible_filters import AnsibleCoreFiltersExtension
from plumbum import local
from slugify import slugify

from tests.conftest import Bake
from tests.project import REPOSITORY, SERVICE, Terminal
from tests.subprocesses import run
from tests.test_answers import BAD_ANSWERS
from tests.variants import VARIANTS

ANSWERS = ".copier-answers.yml"
Copy = Callable[..., Path]
Tree = dict[str, tuple[int, bytes]]


def tree(folder: Path) -> Tree:
    """Return the mode and the content of each file and folder, except Copier's and git's own."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] not in {ANSWERS, ".git"}
    }


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Copy:
    """Return a function that copies with Copier in this process, without git, which is faster."""

    def copy(**answers: object) -> Path:
        folder = tmp_path / "copy"
        with local.env(PATH=""):
            copier.run_copy(
                str(template), folder, data=answers, defaults=True, quiet=True, unsafe=True
            )
        return folder

    return copy


@pytest.mark.variants("pairs")
def test_a_copy_equals_cookiecutter_s_project(copy: Copy, render: Bake, variant: str) -> None:
    """Files, folders and modes; only the file with Copier's answers differs."""
    answers = VARIANTS[variant]
    folder = copy(**answers)
    assert (folder / ANSWERS).exists()
    assert tree(folder) == tree(render(**answers).path)


def test_difficult_names_are_rendered_as_cookiecutter_does(copy: Copy, render: Bake) -> None:
    """Quotes, braces, other scripts, and a license with a name and a year."""
    answers = {
        "project_name": 'O\'Brien & "Söhne" 100%',
        "description": '} %} #} * _ [x](y) | ; \'\' """ $HOME : - 👩\u200d🚀',
        "author_name": "日本 خدمة",
        "license": "GPL-3.0-or-later",
    }
    folder = copy(**answers)
    assert tree(folder) == tree(render(**answers).path)
    stored = yaml.safe_load((folder / ANSWERS).read_text("utf-8"))
    assert {question: stored[question] for question in answers} == answers


def test_the_slug_is_cookiecutter_s_for_european_letters(template: Path) -> None:
    """Names in other scripts, which Copier cannot turn into letters, give `service`."""
    environment = Environment(  # a slug, not HTML
        loader=FileSystemLoader(template), extensions=[AnsibleCoreFiltersExtension]
    )
    made = environment.get_template("hooks/copier.jinja").module.slugify  # type: ignore[attr-defined]
    ranges = [(0xC0, 0x180), (0x1EA0, 0x1EFA), (0x391, 0x3CF), (0x400, 0x460)]
    letters = [chr(code) for first, last in ranges for code in range(first, last)]
    names = ["Ünïcode Straße", "O'Brien’s R&D – 1,000 €", "Cafe\u0301", "--a__b  c--", "Ночь™"]
    for name in [*names, *(f"x{letter}x" for letter in letters if letter.isalpha())]:
        assert made(name) == slugify(name), name


def test_the_same_answers_are_refused_with_the_same_sentences(
    template: Path, tmp_path: Path
) -> None:
    """Before any file is written. Copier also knows the dependencies' names before that."""
    error_of = runpy.run_path(str(REPOSITORY / "hooks/pre_gen_project.py"))["error_of"]
    refused = [
        (question, answer, error_of(question, answer)) for question, answer, _ in BAD_ANSWERS
    ]
    taken = "project_slug cannot be 'fastapi': a dependency has this name; use another one."
    for question, answer, sentence in [*refused, ("project_slug", "fastapi", taken)]:
        with pytest.raises(ValueError, match="Validation error") as error:
            copier.run_copy(
                str(template), tmp_path / "copy", {question: answer}, defaults=True, unsafe=True
            )
        assert str(error.value).partition(": ")[2] == sentence
        assert not (tmp_path / "copy").exists()


def run_copier(terminal: Terminal, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return terminal.run(sys.executable, "-m", "copier", *arguments)


def test_the_command_refuses_an_invalid_answer_and_a_template_that_is_not_trusted(
    template: Path, terminal: Terminal
) -> None:
    """The last line says why, and nothing is left."""
    wanted = {
        ("--trust", "--data", "author_email=me"): "author_email cannot be 'me'; use one email",
        ("--trust", "--data", "license=BSD"): "Invalid choice for 'license': 'BSD' is not in",
        (): "consider adding the `--trust` option",
    }
    for options, words in wanted.items():
        done = run_copier(terminal, "copy", "--defaults", *options, template, "desk")
        assert done.returncode != 0
        assert words in done.stderr.splitlines()[-1]
        assert terminal.leftovers() == []


def publish(terminal: Terminal, template: Path, version: str) -> None:
    terminal.commit(template, version)
    terminal.git(template, "tag", version)


def append(file: Path, text: str) -> None:
    with file.open("a", encoding="utf-8", newline="") as stream:
        stream.write(text)


@pytest.fixture
def project(own_template: Path, terminal: Terminal) -> Path:
    """Return a project in git that Copier made from a tagged release, with the user's changes."""
    publish(terminal, own_template, "v1.0.0")
    folder = terminal.work / "Söhne & Co"
    options = ("--trust", "--defaults", "--data", "example=no")
    done = run_copier(terminal, "copy", *options, f"git+file://{own_template}", folder)
    assert done.returncode == 0, done.stderr
    assert f"cd '{folder}'" in done.stderr
    terminal.commit(folder, "project")
    ignored = folder / ".gitignore"
    ignored.write_text("/from-the-user/\n" + ignored.read_text("utf-8"), "utf-8")
    append(folder / "README.md", "From the user\n")
    (folder / "docs/http.md").unlink()
    for name in OWN:
        append(folder / name, "z==1\n# mine\na==1\n")
    terminal.commit(folder, "edit")
    return folder


# The first name matches a pattern of the example, the second one of files that a task sorts.
OWN = ["tests/test_line_items.py", "requirements-own.txt", "src/domain/price.py"]


def test_an_update_keeps_the_user_s_changes(
    own_template: Path, project: Path, terminal: Terminal
) -> None:
    """Own files, a deleted file, edits, and a conflict; a new question gets its default."""
    service = own_template / SERVICE
    append(service / ".gitignore", "/from-the-template/\n")
    append(service / "README.md", "From the template\n")
    append(service / "docs/http.md", "From the template\n")
    (service / "mood.md").write_text("{{ cookiecutter.mood }}\n", "utf-8")
    asked = own_template / "cookiecutter.json"
    source = asked.read_text("utf-8").replace('"__prompts__": {', '"__prompts__": {"mood": "Mood",')
    asked.write_text(source.replace('"_version"', '"mood": ["good", "bad"], "_version"'), "utf-8")
    run("python", "-m", "scripts.copier", cwd=own_template)
    publish(terminal, own_template, "v1.1.0")

    invalid = ("--data", "project_slug=Desk")
    refused = run_copier(terminal, "update", "--trust", "--defaults", *invalid, project)
    assert "project_slug cannot be 'Desk'" in refused.stderr.splitlines()[-1]
    assert terminal.git(project, "status", "--porcelain") == ""

    done = run_copier(terminal, "update", "--trust", "--defaults", project)

    assert done.returncode == 0, done.stderr
    assert "Next steps" not in done.stderr
    changed = terminal.git(project, "-c", "core.quotePath=no", "status", "--porcelain").splitlines()
    assert changed == [f" M {ANSWERS}", " M .gitignore", "UU README.md", "?? mood.md"]
    lines = (project / ".gitignore").read_text("utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("/from-the-user/", "/from-the-template/")
    assert (project / "mood.md").read_text("utf-8") == "good\n"
    answers = yaml.safe_load((project / ANSWERS).read_text("utf-8"))
    assert (answers["_commit"], answers["mood"], answers["example"]) == ("v1.1.0", "good", False)
