"""Valid answers are rendered correctly; invalid ones are rejected and leave no files."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cookiecutter.exceptions import FailedHookException
from cookiecutter.generate import generate_context
from cookiecutter.prompt import prompt_for_config
from pytest_cookies.plugin import Cookies

from tests.conftest import Bake
from tests.project import BakedProject, Terminal

NAMES = [
    "Acme, Inc.",
    "O'Brien & Söhne 100%",
    'The "Quoted" Service',
    "日本語サービス",
    "خدمة الويب",
    "שירות",
    "Сервис заказов",
    "हिन्दी सेवा",
    "👩\u200d🚀 Rocket",
    "C# $ervice: $HOME ${x} ~ !",
    '} %} #} * _ [x](y) | ; \'\' """',
]
TEXT_FILES = {"pyproject.toml", "README.md", "DEVELOPER-GUIDE.md", "LICENSE"}
LICENSES = {
    "MIT": "Permission is hereby granted, free of charge",
    "Apache-2.0": "Version 2.0, January 2004",
    "BSD-3-Clause": "3. Neither the name of the copyright holder",
    "GPL-3.0-or-later": "Version 3, 29 June 2007",
    "Proprietary": "All rights reserved.",
}


def named(bake: Bake, name: str) -> BakedProject:
    """Bake with the same text as name, description and author."""
    return bake(project_name=name, description=name, author_name=name, project_slug="named")


@pytest.mark.parametrize("name", NAMES)
def test_names_in_any_script_are_rendered_unchanged(bake: Bake, name: str) -> None:
    """TOML and the license hold the text as typed; scripts, YAML and .env files never hold it."""
    project = named(bake, name)
    settings = project.read_toml("pyproject.toml")
    assert settings["project"]["description"] == name
    assert settings["project"]["authors"][0]["name"] == name
    assert settings["tool"]["service"]["title"] == name
    assert name in project.read_file("LICENSE")
    carriers = {file.as_posix() for file in project.files() if name in text(project, file)}
    assert carriers <= TEXT_FILES


def test_the_title_of_the_readme_is_the_project_name(bake: Bake) -> None:
    assert named(bake, NAMES[1]).read_file("README.md").startswith(f"# {NAMES[1]}\n")


def asked(template: Path, **answers: object) -> dict[str, Any]:
    """Return all answers, including derived ones."""
    context = generate_context(str(template / "cookiecutter.json"), extra_context=answers)
    return dict(prompt_for_config(context, no_input=True))


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Order Desk", "order-desk"),
        ("Ünïcode Straße", "unicode-strasse"),
        ("日本語", "ri-ben-yu"),
        ("🚀", "service"),
        ("3D Shop", "service-3d-shop"),
        ("x" * 54 + " yz", "x" * 54),
    ],
)
def test_the_slug_is_derived_from_the_name(template: Path, name: str, slug: str) -> None:
    """The slug has at most 63 lowercase Latin letters, digits and dashes, whatever the script."""
    assert asked(template, project_name=name)["project_slug"] == slug


@pytest.mark.parametrize(("license_", "words"), LICENSES.items())
def test_the_license_is_the_selected_one(bake: Bake, license_: str, words: str) -> None:
    """The full text, with the author and the year."""
    text = bake(license=license_, author_name="Zoë O'Neil").read_file("LICENSE")
    assert words in text
    assert "Zoë O'Neil" in text
    assert str(datetime.now(UTC).year) in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


@pytest.mark.parametrize("provider", ["github", "gitlab", "none"])
def test_only_the_selected_pipeline_exists(bake: Bake, provider: str) -> None:
    project = bake(ci_provider=provider)
    assert project.has_file(".github") == (provider == "github")
    assert project.has_file(".gitlab-ci.yml") == (provider == "gitlab")


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_pipeline_runs_the_selected_python(bake: Bake, version: str) -> None:
    """GitHub Actions reads the version from a file; GitLab CI uses it as the image tag."""
    assert bake(python_version=version).read_file(".github/python-version") == f"{version}\n"
    pipeline = yaml.safe_load(
        bake(python_version=version, ci_provider="gitlab").read_file(".gitlab-ci.yml")
    )
    assert pipeline[".make"]["image"] == f"python:{version}"


def test_the_default_answers_give_well_formed_files(bake: Bake) -> None:
    project = bake()
    for file in project.files():
        if file.suffix == ".toml":
            assert project.is_valid_toml(file), file
        if file.suffix in {".yml", ".yaml"}:
            assert project.is_valid_yaml(file), file


def text(project: BakedProject, file: Path) -> str:
    return (project.path / file).read_bytes().decode("utf-8", "replace")


SLUG = "use lowercase letters, digits and single dashes"
BAD_ANSWERS = [
    # question, answer, expected part of the message
    *(
        ("project_slug", slug, SLUG)
        for slug in [
            " ", "My-Service", "my_service", "my service", "my--service", "my-", "-my", "2fast",
            "a.b", "a/b", "../up", "/etc", "a\\b", "a;b", "$(id)", "`id`", "a|b", "a&b",
            "a'b", 'a"b', "a\nb", "a\n", "naïve", "日本", "a*", "~", "%41",
        ]
    ),
    ("project_slug", "x" * 64, "has 64 characters; use at most 63"),
    ("project_slug", "con", "Windows or Docker reserves this name"),
    ("project_slug", "lpt1", "Windows or Docker reserves this name"),
    ("project_slug", "scratch", "Windows or Docker reserves this name"),
    ("project_name", "", "is empty; type at least one visible character"),
    ("project_name", " \u00a0 ", "is empty; type at least one visible character"),
    ("project_name", "\u200d\u200d", "is empty; type at least one visible character"),
    ("project_name", " Lamp ", "starts or ends with a space"),
    ("project_name", "x" * 81, "has 81 characters; use at most 80"),
    ("project_name", "a\nb", "contains the invisible character U+000A"),
    ("project_name", "a\n", "contains the invisible character U+000A"),
    ("project_name", "\x1b[31mred", "contains the invisible character U+001B"),
    ("project_name", "a\u2028b", "contains the invisible character U+2028"),
    ("project_name", "a\u202eb", "contains the invisible character U+202E"),
    ("project_name", "a\udcffb", "contains the invisible character U+DCFF"),
    ("project_name", "a\0b", "contains the invisible character U+0000"),
    ("project_name", "a\\b", "contains \\"),
    ("project_name", "<b>", "contains <"),
    ("description", "`id`", "contains `"),
    ("description", "x" * 301, "has 301 characters; use at most 300"),
    ("author_name", "", "is empty; type at least one visible character"),
    ("author_name", "a\tb", "contains the invisible character U+0009"),
    *(
        ("author_email", email, "use one email address, for example name@example.com")
        for email in [
            "", "me", "me@", "@example.com", "me@localhost", "me@@example.com", "a b@example.com",
            "me@example..com", ".me@example.com", 'me"@example.com', "me@-example.com",
            "me@example.com\n", "Me <me@example.com>", "me@example.com, you@example.com",
            "x" * 250 + "@example.com",
        ]
    ),
]  # fmt: skip


@pytest.fixture
def reject(
    template: Path,
    cookies: Cookies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[[dict[str, str]], str]:
    """Return a function that asserts that answers are rejected and leave no files; returns stderr.

    It calls cookiecutter in this process, which is ten times as fast as the command.
    """
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def reject(answers: dict[str, str]) -> str:
        result = cookies.bake(answers, template=str(template))
        assert isinstance(result.exception, FailedHookException)
        assert list(scratch.iterdir()) == []
        assert list((tmp_path / "cookies" / "bake00").iterdir()) == []
        return capfd.readouterr().err

    return reject


@pytest.mark.parametrize(("question", "answer", "says"), BAD_ANSWERS)
def test_an_invalid_answer_is_rejected(
    reject: Callable[[dict[str, str]], str], question: str, answer: str, says: str
) -> None:
    """One line on stderr names the question and what to use instead."""
    assert_rejected(reject({question: answer}), question, says)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("project_slug", "a/b"),
        ("project_slug", "/nowhere/a/b"),
        ("project_name", "a\nb"),
        ("author_email", "me"),
    ],
)
def test_the_command_rejects_an_invalid_answer(
    template: Path, terminal: Terminal, question: str, answer: str
) -> None:
    done = terminal.cookiecutter(template, **{question: answer})
    assert done.returncode == 1
    assert_rejected(done.stderr, question, "; ")
    assert terminal.leftovers() == []


def test_an_invalid_choice_is_asked_again(template: Path, terminal: Terminal) -> None:
    """cookiecutter repeats the question immediately and keeps the other answers."""
    keys = {
        "project_name": ["Lamp Shop"],
        "license": ["BSD", "2"],
        "python_version": ["3.10", "4"],
        "example": ["perhaps", "no"],
        "cache_backend": ["mem", "3"],
        "task_queue": ["rabbit", "9", "3"],
        "scheduler": ["maybe", "n"],
        "ci_provider": ["0", "2"],
    }
    questions = json.loads((template / "cookiecutter.json").read_text("utf-8"))
    asked = [question for question in questions if not question.startswith("_")]
    done = terminal.cookiecutter_typed(
        template, *(key for question in asked for key in keys.get(question, [""]))
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Please select one of the available options") == 6
    assert done.stdout.count("Please enter Y or N") == 2
    (replay,) = (terminal.root / "home/.cookiecutter_replay").iterdir()
    answers = json.loads(replay.read_text("utf-8"))["cookiecutter"]
    assert {question: answers[question] for question in keys} == {
        "project_name": "Lamp Shop",
        "license": "Apache-2.0",
        "python_version": "3.11",
        "example": False,
        "cache_backend": "memory",
        "task_queue": "none",
        "scheduler": False,
        "ci_provider": "gitlab",
    }


@pytest.mark.parametrize("answer", ["license=BSD", "cache_backend=", "scheduler=maybe"])
def test_an_unknown_choice_on_the_command_line_leaves_no_files(
    template: Path, terminal: Terminal, answer: str
) -> None:
    """cookiecutter itself rejects it and names the question."""
    question, _, word = answer.partition("=")
    done = terminal.cookiecutter(template, **{question: word})
    assert done.returncode == 1
    assert question in done.stderr.splitlines()[-1]
    assert terminal.leftovers() == []


def test_answers_with_jinja_syntax_are_rejected(template: Path, terminal: Terminal) -> None:
    """An update of the project would render them."""
    done = terminal.cookiecutter_typed(template, "{{ 1 }}", "my-service", "{% if x", "# % if x")
    assert done.returncode == 1
    for question in ("project_name", "description", "author_name"):
        assert_rejected(done.stderr, question, "; remove it")
    assert terminal.leftovers() == []


def test_all_invalid_answers_are_reported_together(template: Path, terminal: Terminal) -> None:
    done = terminal.cookiecutter(template, project_slug="A", author_email="me")
    messages = [line for line in done.stderr.splitlines() if "; use " in line]
    assert [line.split()[0] for line in messages] == ["project_slug", "author_email"]


def test_an_invalid_answer_leaves_an_existing_folder_unchanged(
    template: Path, terminal: Terminal
) -> None:
    kept = terminal.work / "my-service" / "precious"
    kept.parent.mkdir()
    kept.touch()
    done = terminal.cookiecutter(template, "--overwrite-if-exists", author_email="me")
    assert done.returncode == 1
    assert_rejected(done.stderr, "author_email", "use one email address")
    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize("slug", ["", ".", ".."])
def test_a_slug_cannot_name_the_working_folder_or_its_parent(
    template: Path, terminal: Terminal, slug: str
) -> None:
    """The files there are unchanged, even with `--overwrite-if-exists`."""
    kept = terminal.work / "precious"
    kept.touch()
    done = terminal.cookiecutter(template, "--overwrite-if-exists", project_slug=slug)
    assert done.returncode == 1
    assert_rejected(done.stderr, "project_slug", SLUG)
    assert terminal.leftovers() == [kept]


def assert_rejected(stderr: str, question: str, says: str) -> None:
    (sentence,) = [line for line in stderr.splitlines() if line.startswith(f"{question} ")]
    assert says in sentence
    assert sentence.endswith(".")
