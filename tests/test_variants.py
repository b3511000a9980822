"""Variants: all are clean, the triples pass type checks and start, the pairs pass their own tests.

All tests of a variant run in one worker of pytest-xdist, which renders it once.
"""

import ast
import itertools
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from textwrap import dedent
from uuid import uuid4

import pytest
import yaml

from tests import boot
from tests.agents import AgentsFile, follow, missing_paths
from tests.conftest import Bake
from tests.feature_words import unwanted
from tests.project import BakedProject, texts_under
from tests.running import free_port
from tests.servers import serving
from tests.subprocesses import run, run_tests
from tests.variants import OTHERS, SETS, STRUCTURAL, VARIANTS, tuples

WORKFLOWS = Path(".github/workflows")  # their braces are GitHub's
LICENSE = Path("LICENSE")  # unchanged from its authors' text
LINTERS = {"ruff": ["ruff", "check"], "format": ["ruff", "format", "--check"]}
CHECKS = LINTERS | {
    "layers": ["lint-imports"],
    "dependencies": ["deptry", "."],
    "mypy": ["mypy"],
}
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
UNTYPED = re.compile(r"^(untyped_calls_exclude = )\[.*?^\]", re.DOTALL | re.MULTILINE)
LIBRARIES = ["dramatiq", "prometheus_client", "redis"]
WITHOUT_FUZZER = {"PYTEST_ADDOPTS": "-p no:schemathesis"}  # the plugin takes seconds to load
# The default and the smallest variant run their tests as their `make test` does, with coverage.
MEASURED = SETS["pairs"][:2]
EXTENDED = SETS["pairs"][1]
# Tests of engines, whose code is the same in each variant that has them. They run in these four
# variants, and in all that --only or --all selects.
IN_FULL = SETS["pairs"][:4]
ENGINES = [
    *(
        f"tests/test_api/test_{name}.py"
        for name in (
            *("commit", "database_errors", "database_faults", "disconnects", "expensive_reads"),
            *("idempotency", "rate_limits", "request_limits", "response_cache"),
            *("response_cache_safety", "sessions"),
        )
    ),
    *(
        f"tests/test_auth/test_{name}.py"
        for name in ("api_keys", "cli", "oidc", "oidc_login", "oidc_scopes", "revocation")
    ),
    "tests/test_cache/test_circuit_breaker.py",
    "tests/test_cache/test_file.py",
    "tests/test_cache/test_memory.py",
    "tests/test_cache/test_model_tags.py",
    "tests/test_cache/test_redis",
    "tests/test_core/test_patterns.py",
    "tests/test_db",
    "tests/test_mail",
    "tests/test_models/test_autogenerate.py",
    "tests/test_schedulers/test_job_scheduler.py",
    "tests/test_schedulers/test_leadership.py",
    "tests/test_schedulers/test_scheduler.py",
    "tests/test_tasks/test_brokers",
    "tests/test_tasks/test_cli.py",
    "tests/test_tasks/test_outbox.py",
    "tests/test_tasks/test_relay.py",
    "tests/test_tasks/test_retries.py",
    "tests/test_tasks/test_tracking.py",
    *(
        f"tests/test_users/test_{name}.py"
        for name in ("cli", "cross_site", "log_in", "passwords", "repositories")
    ),
]


@pytest.fixture
def project(bake: Bake, variant: str) -> BakedProject:
    return bake(**VARIANTS[variant])


@pytest.fixture
def rendered(render: Bake, variant: str) -> BakedProject:
    return render(**VARIANTS[variant])


@pytest.fixture
def texts(rendered: BakedProject) -> dict[Path, str]:
    return read(rendered.path)


@lru_cache(maxsize=1)  # the tests of a variant follow each other
def read(folder: Path) -> dict[Path, str]:
    return texts_under(folder)


@pytest.fixture(scope="session")
def linted() -> set[object]:
    return set()


@dataclass(frozen=True)
class Shared:
    """A folder and servers that all variants of a worker use; `url_of` starts a server by name."""

    folder: Path
    url_of: Callable[[str], str]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with ExitStack() as servers:  # each starts at its first use
        url_of = cache(lambda name: servers.enter_context(serving(name)))
        yield Shared(tmp_path_factory.mktemp("shared"), url_of)


@pytest.mark.parametrize(
    ("variants", "questions", "size"),
    [
        ("all", STRUCTURAL, len(STRUCTURAL)),
        ("triples", STRUCTURAL, 3),
        ("pairs", STRUCTURAL, 2),
        ("all", STRUCTURAL | OTHERS, 2),
    ],
    ids=["all", "triples", "pairs", "others"],
)
def test_answers_occur_together(variants: str, questions: dict[str, list[str]], size: int) -> None:
    """Structural answers: all combinations, triples and pairs. All answers: pairs."""
    seen = set().union(*(tuples(VARIANTS[variant], size) for variant in SETS[variants]))
    for some in itertools.combinations(sorted(questions), size):
        for words in itertools.product(*map(questions.__getitem__, some)):
            assert tuple(zip(some, words, strict=True)) in seen


def test_engines_are_tested_with_each_broker_scheduler_and_login(render: Bake) -> None:
    variants = [VARIANTS[variant] for variant in IN_FULL]
    for question in ("task_queue", "scheduler", "auth"):
        assert {answers[question] for answers in variants} == set(STRUCTURAL[question])
    for path in ENGINES:
        assert any(render(**answers).has_file(path) for answers in variants), path


@pytest.mark.variants("all")
def test_no_trace_of_the_template(texts: dict[Path, str]) -> None:
    """No tag, Jinja brace or tool name in any file or file name."""
    for file, text in texts.items():
        assert not has_traces(file, text), file


@cache
def has_traces(file: Path, text: str) -> bool:
    if "cookiecutter" in text.lower() + file.as_posix():
        return True
    braces = "" if file.is_relative_to(WORKFLOWS) else r"\{\{|\{%|\{#|"
    return bool(re.search(rf"{braces}^[ \t]*# %", text, re.MULTILINE))


@pytest.mark.variants("all")
def test_no_word_of_an_unselected_feature(texts: dict[Path, str], variant: str) -> None:
    """In any file, including documentation and comments, and in any file name."""
    found = [
        f"{file}: {line.strip()}"
        for file, text in texts.items()
        if file != LICENSE
        for line in unwanted(VARIANTS[variant], f"{file.as_posix()}\n{text}")
    ]
    assert found == []


@pytest.mark.variants("all")
def test_tags_leave_no_gaps(texts: dict[Path, str]) -> None:
    """No extra or missing blank lines where a tag was."""
    for file, text in texts.items():
        if file != LICENSE:
            assert text == text.strip("\n") + "\n" * bool(text), file
        assert "\n\n\n\n" not in text, file
        assert file.suffix != ".md" or not gaps_of(text), file


@cache
def gaps_of(page: str) -> list[str]:
    """Return the headings and fences of a Markdown page without a blank line before them."""
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


@pytest.mark.variants("all")
def test_toml_yaml_and_json_are_valid(texts: dict[Path, str]) -> None:
    """And the Python snippets of the pages."""
    for file, text in texts.items():
        parse(file, text)


@cache
def parse(file: Path, text: str) -> None:
    """Raise an error of the parser, with the file's name, for an invalid text."""
    try:
        if file.suffix == ".toml":
            tomllib.loads(text)
        elif file.suffix in {".yml", ".yaml"}:
            list(yaml.compose_all(text, yaml.SafeLoader))  # accepts any tag
        elif file.suffix == ".json":
            json.loads(text)
        elif file.suffix == ".md":
            for snippet in SNIPPET.findall(text):
                ast.parse(dedent(snippet))
    except (ValueError, SyntaxError, yaml.YAMLError) as error:
        error.add_note(str(file))
        raise


@pytest.mark.variants("all")
def test_kustomizations_list_their_files(rendered: BakedProject) -> None:
    """Each file and folder that they list exists, and they list each file of their folder."""
    for file in rendered.path.rglob("kustomization.yaml"):
        document = yaml.safe_load(file.read_text("utf-8"))
        listed = {*document.get("resources", []), *document.get("components", [])}
        listed |= {each["path"] for each in document.get("patches", []) if "path" in each}
        assert all((file.parent / name).exists() for name in listed), file
        assert {path.name for path in file.parent.glob("*.yaml")} <= {*listed, file.name}, file


@pytest.mark.variants("all")
@pytest.mark.parametrize("linter", LINTERS)
def test_linters_find_nothing(
    rendered: BakedProject, texts: dict[Path, str], linter: str, linted: set[object]
) -> None:
    """A file is linted once for all variants that have it, with the same options and neighbours."""
    options = str(rendered.read_toml("pyproject.toml")["tool"]["ruff"])
    folders = frozenset(file.parts[0] for file in texts)  # with them, ruff sorts imports
    packages = {file.parent for file in texts if file.name == "__init__.py"}
    keys = {
        file: (linter, options, folders, file.parent in packages, file, text)
        for file, text in texts.items()
        if file.suffix == ".py"
    }
    if new := [file for file, key in keys.items() if key not in linted]:
        run(*LINTERS[linter], "--no-cache", *new, cwd=rendered.path)
    linted.update(keys.values())


@pytest.mark.variants("triples")
def test_passes_its_own_checks(project: BakedProject, shared: Shared) -> None:
    """Types, layers and dependencies, with the project's own configuration."""
    use_the_same_mypy_options(project)
    for check in CHECKS.keys() - LINTERS.keys():
        run(*CHECKS[check], cwd=project.path, env={"MYPY_CACHE_DIR": str(shared.folder / "mypy")})


def use_the_same_mypy_options(project: BakedProject) -> None:
    """Name all libraries, because mypy discards the cache of a variant that names other ones."""
    options = project.path / "pyproject.toml"
    text, count = UNTYPED.subn(rf"\1{LIBRARIES}", options.read_text("utf-8"))
    assert count == 1
    options.write_text(text, "utf-8")


@pytest.mark.variants("triples")
def test_starts_with_its_own_requirements(
    project: BakedProject, variant: str, shared: Shared, tmp_path: Path
) -> None:
    """With production settings: it migrates, responds, runs tasks and stops."""
    answers, log = VARIANTS[variant], tmp_path / "service.log"
    share_bytecode(shared.folder)
    env = boot.production(answers, shared.url_of, f"boot_{uuid4().hex}", free_port())
    env["PYTHONPYCACHEPREFIX"] = str(shared.folder / "bytecode")
    python = boot.install(project, shared.folder)
    with boot.booted(project, python, env, log) as client:
        boot.smoke(client, answers, log)


@pytest.mark.variants("all")
def test_agents_file_names_existing_paths(rendered: BakedProject) -> None:
    named = AgentsFile(rendered.read_file("AGENTS.md")).paths
    assert missing_paths(rendered.path, named) == set()


def share_bytecode(folder: Path) -> None:
    """Let all workers use one folder for the bytecode of the environments in their own folders.

    To compile the packages for one Python takes ten seconds.
    """
    link = Path(f"{folder}/bytecode{folder}")
    if "PYTEST_XDIST_WORKER" in os.environ and not link.exists():
        common = folder.parents[1] / "bytecode"
        common.mkdir(exist_ok=True)
        link.parent.mkdir(parents=True)
        link.symlink_to(common, target_is_directory=True)


@pytest.mark.variants("pairs")
def test_passes_its_own_tests(
    project: BakedProject, variant: str, shared: Shared, request: pytest.FixtureRequest
) -> None:
    """On PostgreSQL, Valkey and RabbitMQ; two variants with coverage, as their `make test` does.

    One of these has a new resource, which was added as AGENTS.md says.
    """
    env = WITHOUT_FUZZER | {"DATABASE_URL": shared.url_of("postgres")}
    parallel: list[str] = []
    if variant == EXTENDED:
        use_the_same_mypy_options(project)
        left = follow(project, env | {"MYPY_CACHE_DIR": str(shared.folder / "mypy")})
        # Run below, by scripts/lock_service.py, and by tests/test_service_bench.py.
        assert left == {"make test", "make lock", "make bench BASE=main"}
    if variant in MEASURED:
        parallel = ["--numprocesses", "2", "--cov"]
    elif VARIANTS[variant]["task_queue"] == "rabbitmq":  # two processes would share its queues
        env["TEST_RABBITMQ_URL"] = shared.url_of("rabbitmq")
    selected = request.config.getoption("--only") or request.config.getoption("--all")
    in_full = variant in IN_FULL or selected
    options = [] if in_full else [f"--ignore={path}" for path in ENGINES]
    run_tests(*options, cwd=project.path, env=env, parallel=parallel)
