"""Every variant is clean, boots from its own requirements and passes its own tests.

All that a variant shows runs in one worker of pytest-xdist, which renders it once.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from tests import booting, commands
from tests.baked import BakedProject, texts_under
from tests.conftest import Bake
from tests.image import free_port
from tests.servers import serving
from tests.variants import CHOICES, QUESTIONS, STRUCTURAL, VARIANTS, pairs_of
from tests.vocabulary import names, not_chosen

COPIED = Path(".github/workflows")  # not rendered: the braces in them are GitHub's
LICENSE = Path("LICENSE")  # as its authors published it
CHECKS = {
    "ruff": ["ruff", "check"],
    "format": ["ruff", "format", "--check"],
    "layers": ["lint-imports"],
    "dependencies": ["deptry", "."],
    "mypy": ["mypy"],
}
WITHOUT_FUZZER = {"PYTEST_ADDOPTS": "-p no:schemathesis"}  # the template's, takes seconds to load
COMPOSE = sorted(f"docker-compose{part}.yml" for part in ("", ".prod", ".secrets"))
# These are tested as `make test` of a project does it: the default, and the smallest of each kind.
MEASURED = {"none-none-no", "redis-redis-yes", "none-rabbitmq-no"}
BOOTS = booting.boots()


@pytest.fixture
def project(bake: Bake, variant: str) -> BakedProject:
    return bake(**VARIANTS[variant])


@dataclass(frozen=True)
class Shared:
    """What the variants of a worker share: a folder, and a function from a server's name to its URL."""

    folder: Path
    url_of: Callable[[str], str]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with ExitStack() as servers:  # each starts when it is first asked for
        url_of = cache(lambda name: servers.enter_context(serving(name)))
        yield Shared(tmp_path_factory.mktemp("shared"), url_of)


def test_variants_are_all_there_are() -> None:
    """Each combination of the structural answers, and each pair of any two answers."""
    pairs = set().union(*map(pairs_of, VARIANTS.values()))
    structures = {tuple(map(answers.get, STRUCTURAL)) for answers in VARIANTS.values()}
    assert len(structures) == math.prod(map(len, STRUCTURAL.values()))
    for question, words in STRUCTURAL.items():
        assert CHOICES[question] == words
    for first, second in itertools.combinations(sorted(QUESTIONS), 2):
        for pair in itertools.product(QUESTIONS[first], QUESTIONS[second]):
            assert ((first, pair[0]), (second, pair[1])) in pairs


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_trace_of_the_template(project: BakedProject) -> None:
    """No tag, no brace of Jinja's and not the name of the tool in any file or file name."""
    for file, text in texts_under(project.path).items():
        assert "cookiecutter" not in text.lower() + file.as_posix(), file
        assert not re.search(r"^[ \t]*# %", text, re.MULTILINE), file
        if not file.is_relative_to(COPIED):
            assert not re.search(r"\{\{|\{%|\{#", text), file


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_word_of_what_was_not_chosen(project: BakedProject, variant: str) -> None:
    """In no line of any file, documentation and comments included, and in no file's name."""
    unwanted = list(not_chosen(VARIANTS[variant]))
    found = [
        f"{file}: {line.strip()}"
        for file, text in texts_under(project.path).items()
        for line in [file.as_posix(), *text.splitlines()]
        for feature in unwanted
        if names(feature, line)
    ]
    assert found == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_reads_as_if_written_by_hand(project: BakedProject) -> None:
    """No gap or missing gap where a condition was."""
    for file, text in texts_under(project.path).items():
        if file != LICENSE:
            assert text == text.strip("\n") + "\n" * bool(text), file
        assert "\n\n\n\n" not in text, file
        assert file.suffix != ".md" or not gaps_of(text), file


def gaps_of(page: str) -> list[str]:
    """Return the headings and fences of a Markdown page that do not stand apart from the rest."""
    faults, fenced, before = [], False, ""
    for line in page.splitlines():
        opens = line.startswith("```") and not fenced
        if (opens or (line.startswith("#") and not fenced)) and before:
            faults.append(line)
        if not fenced and not line and not before:
            faults.append("two blank lines")
        fenced ^= line.startswith("```")
        before = line
    return faults


@pytest.mark.parametrize("variant", VARIANTS)
def test_data_files_are_valid(project: BakedProject, tmp_path: Path) -> None:
    """TOML, YAML and JSON can be read, and the compose files fit Compose's schema."""
    for file in project.files():
        if file.suffix == ".toml":
            assert project.is_valid_toml(file), file
        elif file.suffix in {".yml", ".yaml"}:
            assert project.is_valid_yaml(file), file
        elif file.suffix == ".json":
            json.loads(project.read_file(file))
    plain = [plain_compose(project.path / name, tmp_path) for name in COMPOSE]
    schema = ["--builtin-schema", "vendor.compose-spec"]
    commands.run("check-jsonschema", *schema, *plain, cwd=project.path, scratch=tmp_path)


class ComposeLoader(yaml.SafeLoader):
    """Takes Compose's own tags, of which YAML knows nothing, for the values behind them."""


def _untagged(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else None


ComposeLoader.add_constructor("!override", _untagged)
ComposeLoader.add_constructor("!reset", _untagged)


def plain_compose(file: Path, scratch: Path) -> Path:
    """Write the file without Compose's own tags, which its schema does not know."""
    document = yaml.load(file.read_text("utf-8"), Loader=ComposeLoader)  # noqa: S506 - safe one
    for service in document["services"].values():
        for key in [key for key, value in service.items() if value is None]:
            del service[key]  # was !reset
    plain = scratch / f"{file.name}.json"
    plain.write_text(json.dumps(document), "utf-8")
    return plain


@pytest.mark.parametrize("variant", VARIANTS)
def test_passes_its_own_checks(project: BakedProject, tmp_path: Path, shared: Shared) -> None:
    """Linters, types, layers and dependencies, as they are set in the project."""
    caches = {"MYPY_CACHE_DIR": str(shared.folder / "mypy" / mypy_options(project))}
    for check in CHECKS.values():
        commands.run(*check, cwd=project.path, scratch=tmp_path, env=caches)


def mypy_options(project: BakedProject) -> str:
    """Name what differs of mypy's options: what it knows of one variant serves those of the same."""
    options = project.read_toml("pyproject.toml")["tool"]["mypy"]
    return "-".join(options["untyped_calls_exclude"])


@pytest.mark.parametrize(("variant", "python"), BOOTS)
def test_boots_from_its_own_requirements(
    project: BakedProject,
    variant: str,
    python: str,
    shared: Shared,
    tmp_path: Path,
) -> None:
    """In production's settings: it migrates, serves, works and stops, with nothing else installed."""
    answers, log = VARIANTS[variant], tmp_path / "service.log"
    env = booting.production(answers, shared.url_of, f"boot_{uuid4().hex}", free_port())
    env["PYTHONPYCACHEPREFIX"] = str(shared.folder / "bytecode")
    with (
        booting.installed(project, python, shared.folder) as interpreter,
        booting.booted(project, interpreter, env, log) as service,
    ):
        booting.smoke(service, answers, log)


@pytest.mark.parametrize("variant", VARIANTS)
def test_passes_its_own_tests(
    project: BakedProject,
    variant: str,
    shared: Shared,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """On PostgreSQL, Valkey and RabbitMQ; three of the variants with coverage, as `make test` does."""
    env = WITHOUT_FUZZER | {"DATABASE_URL": shared.url_of("postgres")}
    how: list[str] = []
    if variant in MEASURED:
        how = ["--numprocesses", "2", "--cov"]
    elif VARIANTS[variant]["task_queue"] == "rabbitmq":  # two processes would share queues there
        env["TEST_RABBITMQ_URL"] = shared.url_of("rabbitmq")
    printed = commands.run("pytest", "--quiet", *how, cwd=project.path, scratch=tmp_path, env=env)
    record_property("result", printed.splitlines()[-1])
