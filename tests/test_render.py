"""Rules of the template: un-rendered, it is the service with every feature."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment

from scripts import copier
from tests.conftest import Bake
from tests.project import REPOSITORY, SERVICE, BakedProject, files_under, texts_under
from tests.variants import ALL, EVERYTHING

TAG = re.compile(r"^[ \t]*# % *(\w+).*\n", re.MULTILINE)
VARIABLE = re.compile(r"\{\{ cookiecutter\.(\w+) \}\}")
RAW = re.compile(r"\{% (?:end)?raw %\}")  # in workflows, whose braces are GitHub's
INCLUDES = Path("LICENSE")  # includes a text from templates/licenses
# Conditions in all files together. If you need more, move a feature to separate files.
CONDITION_BUDGET = 284


def patterns_of_unselected(answers: dict[str, Any]) -> list[str]:
    """Return the patterns in the hook's table whose condition is false for the answers."""
    source = (REPOSITORY / "hooks/post_gen_project.py").read_text("utf-8")
    rendered = Environment(autoescape=False).from_string(source).render(cookiecutter=answers)
    (table,) = [
        node.value
        for node in ast.parse(rendered).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FEATURES"
    ]
    rows: list[tuple[str, str]] = ast.literal_eval(table)
    return " ".join(paths for condition, paths in rows if condition in {"", "False"}).split()


@pytest.fixture
def service(template: Path) -> Path:
    return template / SERVICE


def test_the_full_project_is_the_source_without_tags(bake: Bake, service: Path) -> None:
    """Only tag lines and variables differ."""
    project = bake(**EVERYTHING)
    unselected = patterns_of_unselected(project.answers)
    deleted = [path for pattern in unselected for path in service.glob(pattern)]
    assert project.files() == [
        file
        for file in files_under(service)
        if not any((service / file).is_relative_to(path) for path in deleted)
        and "_copier_conf" not in file.name  # cookiecutter skips a name that renders to nothing
    ]
    for file, source in texts_under(service).items():
        if file == INCLUDES or not project.has_file(str(file)):
            continue
        expected = filled(source, project)
        found = project.read_file(file)
        if file.match("requirements*.txt"):  # the hook sorts the pins
            assert sorted(found.splitlines()) == sorted(expected.splitlines())
        else:
            assert found == expected, file


def filled(source: str, project: BakedProject) -> str:
    text = RAW.sub("", TAG.sub("", source))
    return VARIABLE.sub(lambda match: str(project.answers[match[1]]), text)


def test_every_pattern_of_the_hook_matches_a_file(service: Path) -> None:
    """Except the patterns of tools' caches."""
    source = (REPOSITORY / "hooks/post_gen_project.py").read_text("utf-8")
    for paths in re.findall(r'}}", "+(.*?)"+\)', source, re.DOTALL):
        for pattern in paths.split():
            assert list(service.glob(pattern)), pattern


def test_every_python_file_of_the_template_is_valid_python(service: Path) -> None:
    """Linters and tests run on the un-rendered source, so it has no Jinja braces."""
    for file, text in texts_under(service).items():
        if file.suffix == ".py":
            ast.parse(text)
            assert not re.search(r"\{\{|\{%|\{#", text), file


def test_copier_yml_is_current() -> None:
    """If not, run `make docs`."""
    assert copier.TARGET.read_text("utf-8") == copier.text()


def test_models_of_tests_have_names_that_no_service_has(service: Path) -> None:
    """`SampleNote` and so on: SQLAlchemy finds models by their names, also those of other tables."""
    for file, text in texts_under(service / "tests").items():
        models = re.findall(r"^class (\w+)\(Base\b", text, re.MULTILINE)
        assert all(name.startswith("Sample") for name in models), file


def test_readme_has_the_number_of_combinations() -> None:
    assert f"All {len(ALL)} combinations" in (REPOSITORY / "README.md").read_text("utf-8")


def test_tags_are_few_and_simple(service: Path) -> None:
    """Only `if` and `endif`, one level deep, and within a budget."""
    conditions = 0
    for file, text in texts_under(service).items():
        words = [match[1] for match in TAG.finditer(text)]
        assert words == ["if", "endif"] * (len(words) // 2), file
        conditions += len(words) // 2
    assert conditions <= CONDITION_BUDGET
