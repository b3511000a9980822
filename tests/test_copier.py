"""Copier gives the same project as cookiecutter, refuses the same answers, and updates a project."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import copier
import pytest
from jinja2 import Environment, FileSystemLoader
from jinja2_ansible_filters import AnsibleCoreFiltersExtension
from plumbum import local
from slugify import slugify

from tests.conftest import Bake
from tests.project import REPOSITORY, Terminal
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
    assert tree(copy(**answers)) == tree(render(**answers).path)


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
