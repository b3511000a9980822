"""Guards of the template's one idea: un-rendered, it is the service with every feature on."""

import ast
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from tests.baked import REPOSITORY, SERVICE, BakedProject, files_under, texts_under
from tests.conftest import Bake

TAG = re.compile(r"^[ \t]*# % *(\w+).*\n", re.MULTILINE)
VARIABLE = re.compile(r"\{\{ cookiecutter\.(\w+) \}\}")
COPIED = Path(".github/workflows")  # named by _copy_without_render
INCLUDES = Path("LICENSE")  # its text comes from templates/licenses
# In all files together; beyond them, make a folder of a feature.
TAG_BUDGET = 368
TAG_BUDGET_OF_PROSE = 180


def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "post_gen_project", REPOSITORY / "hooks/post_gen_project.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def service(template: Path) -> Path:
    return template / SERVICE


def test_the_full_project_is_the_source_less_its_tags(bake: Bake, service: Path) -> None:
    """Every line is the same but for tag lines, which are gone, and plain variables, filled in."""
    project = bake(cache_backend="all", task_queue="all")
    unchosen = dropped(project)
    assert project.files() == [
        file
        for file in files_under(service)
        if not any(file.is_relative_to(path) for path in unchosen)
    ]
    for file, source in texts_under(service).items():
        if file == INCLUDES or not project.has_file(str(file)):
            continue
        assert project.read_file(file) == (
            source if file.is_relative_to(COPIED) else filled(source, project)
        ), file


def filled(source: str, project: BakedProject) -> str:
    return VARIABLE.sub(lambda match: str(project.answers[match[1]]), TAG.sub("", source))


def dropped(project: BakedProject) -> set[Path]:
    features = hook().FEATURES
    return {
        Path(path)
        for question, kept_by, paths in features
        if project.answers[question] not in kept_by
        for path in paths
    }


def test_the_hook_names_only_what_the_template_has(service: Path) -> None:
    """Every path of its table exists, and every answer is one of its question's."""
    choices = choices_of_questions()
    for question, kept_by, paths in hook().FEATURES:
        assert kept_by <= choices.get(question, {"yes", ""})  # a private form of one
        for path in paths:
            assert (service / path).exists(), path


def choices_of_questions() -> dict[str, set[str]]:
    questions = json.loads((REPOSITORY / "cookiecutter.json").read_text("utf-8"))
    return {question: set(words) for question, words in questions["_choices"].items()}


def test_every_python_file_of_the_template_is_valid_python(service: Path) -> None:
    """As it is, so that linters and tests run in place; a brace pair would be Jinja's."""
    for file, text in texts_under(service).items():
        if file.suffix == ".py":
            ast.parse(text)
            assert not re.search(r"\{\{|\{%|\{#", text), file


def test_tags_are_few_and_simple(service: Path) -> None:
    """Only ``if`` and ``endif``, one level deep, and within a budget."""
    used: Counter[bool] = Counter()
    for file, text in texts_under(service).items():
        words = [match[1] for match in TAG.finditer(text)]
        assert words == ["if", "endif"] * (len(words) // 2), file
        used[file.suffix == ".md"] += len(words)
    assert used[False] <= TAG_BUDGET
    assert used[True] <= TAG_BUDGET_OF_PROSE


def test_conditions_ask_for_the_private_forms(service: Path) -> None:
    """``cookiecutter.scheduler`` may be the word ``no``, which is true; ``__scheduler`` is empty then."""
    for file, text in texts_under(service).items():
        assert not re.search(r"cookiecutter\.(scheduler|task_queue)\b", text), file
