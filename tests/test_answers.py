"""Good answers come out right in every file; bad ones are refused and leave nothing."""

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
def test_a_name_in_any_script_and_with_any_sign_comes_out_right(bake: Bake, name: str) -> None:
    """TOML reads the text back as it was typed, and it stands word for word in the licence.

    No script, YAML or .env file holds what a person typed freely.
    """
    project = named(bake, name)
    settings = project.read_toml("pyproject.toml")
    assert settings["project"]["description"] == name
    assert settings["project"]["authors"][0]["name"] == name
    assert settings["tool"]["service"]["title"] == name
    assert name in project.read_file("LICENSE")
    carriers = {file.as_posix() for file in project.files() if name in text(project, file)}
    assert carriers <= TEXT_FILES


def test_the_readme_is_headed_by_the_name(bake: Bake) -> None:
    """As it was typed."""
    assert named(bake, NAMES[1]).read_file("README.md").startswith(f"# {NAMES[1]}\n")


def asked(template: Path, **answers: object) -> dict[str, Any]:
    """Return all the answers, derived ones too, as cookiecutter has them before it renders."""
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
    """In small Latin letters and at most 63 of them, whatever the name is written in."""
    assert asked(template, project_name=name)["project_slug"] == slug


@pytest.mark.parametrize(("license_", "words"), LICENSES.items())
def test_the_licence_is_the_chosen_one(bake: Bake, license_: str, words: str) -> None:
    """In full, with the author and, where the licence has a place for it, the year."""
    text = bake(license=license_, author_name="Zoë O'Neil").read_file("LICENSE")
    assert words in text
    assert "Zoë O'Neil" in text
    assert str(datetime.now(UTC).year) in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


@pytest.mark.parametrize("provider", ["github", "gitlab", "none"])
def test_only_the_chosen_pipeline_is_there(bake: Bake, provider: str) -> None:
    """Of the others not even an empty folder stays."""
    project = bake(ci_provider=provider)
    assert project.has_file(".github") == (provider == "github")
    assert project.has_file(".gitlab-ci.yml") == (provider == "gitlab")


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_pipeline_runs_the_chosen_python(bake: Bake, version: str) -> None:
    """So does GitHub's, which reads it from a file, and GitLab's, whose image it names."""
    assert bake(python_version=version).read_file(".github/python-version") == f"{version}\n"
    pipeline = yaml.safe_load(
        bake(python_version=version, ci_provider="gitlab").read_file(".gitlab-ci.yml")
    )
    assert pipeline[".make"]["image"] == f"python:{version}"


def test_the_default_answers_give_well_formed_files(bake: Bake) -> None:
    """Every TOML and YAML file parses."""
    project = bake()
    for file in project.files():
        if file.suffix == ".toml":
            assert project.is_valid_toml(file), file
        if file.suffix in {".yml", ".yaml"}:
            assert project.is_valid_yaml(file), file


def text(project: BakedProject, file: Path) -> str:
    return (project.path / file).read_bytes().decode("utf-8", "replace")


SLUG = "use small letters, digits and single dashes"
BAD_ANSWERS = [
    # question, answer, what the sentence says
    *(
        ("project_slug", slug, SLUG)
        for slug in [
            " ", "My-Service", "my_service", "my service", "my--service", "my-", "-my", "2fast",
            "a.b", "a/b", "../up", "/etc", "a\\b", "a;b", "$(id)", "`id`", "a|b", "a&b",
            "a'b", 'a"b', "a\nb", "a\n", "naïve", "日本", "a*", "~", "%41",
        ]
    ),
    ("project_slug", "x" * 64, "has 64 characters; use at most 63"),
    ("project_slug", "con", "which Windows or Docker reserves"),
    ("project_slug", "lpt1", "which Windows or Docker reserves"),
    ("project_slug", "scratch", "which Windows or Docker reserves"),
    ("project_name", "", "no visible character"),
    ("project_name", " \u00a0 ", "no visible character"),
    ("project_name", "\u200d\u200d", "no visible character"),
    ("project_name", " Lamp ", "white space"),
    ("project_name", "x" * 81, "has 81 characters; use at most 80"),
    ("project_name", "a\nb", "hidden character U+000A"),
    ("project_name", "a\n", "hidden character U+000A"),
    ("project_name", "\x1b[31mred", "hidden character U+001B"),
    ("project_name", "a\u2028b", "hidden character U+2028"),
    ("project_name", "a\u202eb", "hidden character U+202E"),
    ("project_name", "a\udcffb", "hidden character U+DCFF"),
    ("project_name", "a\0b", "hidden character U+0000"),
    ("project_name", "a\\b", "contains \\"),
    ("project_name", "<b>", "contains <"),
    ("description", "`id`", "contains `"),
    ("description", "x" * 301, "has 301 characters; use at most 300"),
    ("author_name", "", "no visible character"),
    ("author_name", "a\tb", "hidden character U+0009"),
    *(
        ("author_email", email, "use one address, such as name@example.com")
        for email in [
            "", "me", "me@", "@example.com", "me@localhost", "me@@example.com", "a b@example.com",
            "me@example..com", ".me@example.com", 'me"@example.com', "me@-example.com",
            "me@example.com\n", "Me <me@example.com>", "me@example.com, you@example.com",
            "x" * 250 + "@example.com",
        ]
    ),
]  # fmt: skip


@pytest.fixture
def refuse(
    template: Path,
    cookies: Cookies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[[dict[str, str]], str]:
    """Return a function that gives answers, sees them refused without a trace, and returns stderr.

    It calls cookiecutter within this process, which takes a tenth of the command's time.
    """
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def refuse(answers: dict[str, str]) -> str:
        result = cookies.bake(answers, template=str(template))
        assert isinstance(result.exception, FailedHookException)
        assert list(scratch.iterdir()) == []
        assert list((tmp_path / "cookies" / "bake00").iterdir()) == []
        return capfd.readouterr().err

    return refuse


@pytest.mark.parametrize(("question", "answer", "says"), BAD_ANSWERS)
def test_a_bad_answer_is_refused(
    refuse: Callable[[dict[str, str]], str], question: str, answer: str, says: str
) -> None:
    """One sentence on stderr names the question and what is accepted; nothing stays on disk."""
    assert_refused(refuse({question: answer}), question, says)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("project_slug", "a/b"),
        ("project_slug", "/nowhere/a/b"),
        ("project_name", "a\nb"),
        ("author_email", "me"),
    ],
)
def test_the_command_refuses_it_too(
    template: Path, terminal: Terminal, question: str, answer: str
) -> None:
    """With exit status 1, and nothing left in the working or temporary folder."""
    done = terminal.cookiecutter(template, **{question: answer})
    assert done.returncode == 1
    assert_refused(done.stderr, question, "; ")
    assert terminal.leftovers() == []


def test_a_wrong_key_is_asked_again_at_once(template: Path, terminal: Terminal) -> None:
    """At each choice and each yes or no; digits select, and no other answer is lost."""
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
def test_an_unknown_choice_on_the_command_line_leaves_nothing(
    template: Path, terminal: Terminal, answer: str
) -> None:
    """cookiecutter itself refuses it, and names the question."""
    question, _, word = answer.partition("=")
    done = terminal.cookiecutter(template, **{question: word})
    assert done.returncode == 1
    assert question in done.stderr.splitlines()[-1]
    assert terminal.leftovers() == []


def test_typed_answers_that_jinja_would_read_are_refused(
    template: Path, terminal: Terminal
) -> None:
    """They would be rendered when the project is updated from its template."""
    done = terminal.cookiecutter_typed(template, "{{ 1 }}", "my-service", "{% if x", "# % if x")
    assert done.returncode == 1
    for question in ("project_name", "description", "author_name"):
        assert_refused(done.stderr, question, "; use ")
    assert terminal.leftovers() == []


def test_every_bad_answer_is_named_at_once(template: Path, terminal: Terminal) -> None:
    """A person corrects them all in one go."""
    done = terminal.cookiecutter(template, project_slug="A", author_email="me")
    refusals = [line for line in done.stderr.splitlines() if "; use " in line]
    assert [line.split()[0] for line in refusals] == ["project_slug", "author_email"]


def test_a_refusal_spares_a_folder_that_was_there(template: Path, terminal: Terminal) -> None:
    """Even if it may be overwritten."""
    kept = terminal.work / "my-service" / "precious"
    kept.parent.mkdir()
    kept.touch()
    done = terminal.cookiecutter(template, "--overwrite-if-exists", author_email="me")
    assert done.returncode == 1
    assert_refused(done.stderr, "author_email", "use one address")
    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize("slug", ["", ".", ".."])
def test_a_slug_that_names_a_folder_above_spares_it(
    template: Path, terminal: Terminal, slug: str
) -> None:
    """The working folder and its parent stay as they were, even if they may be overwritten."""
    kept = terminal.work / "precious"
    kept.touch()
    done = terminal.cookiecutter(template, "--overwrite-if-exists", project_slug=slug)
    assert done.returncode == 1
    assert_refused(done.stderr, "project_slug", SLUG)
    assert terminal.leftovers() == [kept]


def assert_refused(stderr: str, question: str, says: str) -> None:
    (sentence,) = [line for line in stderr.splitlines() if line.startswith(f"{question} ")]
    assert says in sentence
    assert sentence.endswith(".")
