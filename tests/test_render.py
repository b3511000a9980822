"""Guards of the template's one idea: un-rendered, it is the service with every feature on."""

import ast
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from tests.baked import REPOSITORY, SERVICE, BakedProject, files_under
from tests.conftest import Bake

TAG = re.compile(r"^[ \t]*# % *(\w+).*\n", re.MULTILINE)
VARIABLE = re.compile(r"\{\{ cookiecutter\.(\w+) \}\}")
COPIED = Path(".github/workflows")  # named by _copy_without_render
INCLUDES = Path("LICENSE")  # its text comes from templates/licenses
# In all files together; beyond them, make a folder of a feature.
TAG_BUDGET = 364
TAG_BUDGET_OF_PROSE = 180
ANSWERS = [
    {},
    {"ci_provider": "gitlab", "cache_backend": "all", "task_queue": "all"},
    {"cache_backend": "file", "task_queue": "rabbitmq", "scheduler": "no"},
    {"cache_backend": "memory", "task_queue": "none"},
    {"cache_backend": "memory", "task_queue": "redis", "scheduler": "no"},
    {"cache_backend": "none", "task_queue": "rabbitmq"},
    {"ci_provider": "none", "cache_backend": "none", "task_queue": "none", "scheduler": "no"},
]
# What answers bring, by words that nothing else has a use for.
WORDS = {
    "redis": re.compile("redis|valkey|sentinel", re.IGNORECASE),
    "file": re.compile("sqlite|cache_(file|folder)|FileBackend", re.IGNORECASE),
    "cache": re.compile("cach", re.IGNORECASE),
    "rabbitmq": re.compile("rabbit|amqp|pika|aiormq|pamqp|erlang|quorum", re.IGNORECASE),
    "queue": re.compile(  # "worker" alone may be one of the API's, or of pytest-xdist's
        r"dramatiq|broker|outbox|\bactors?\b|enqueue|dead.?letter|redeliver|(task|message).?queue"
        r"|background.?task|cli\.py worker\b|src[./]worker|src[./]tasks|(open_|tasks[./])relay"
        r"|/tasks\b|cli\.py tasks|item[_-]?imports?\b|ItemImport",
        re.IGNORECASE,
    ),
    "scheduler": re.compile("schedul|stale_?item|staleness", re.IGNORECASE),
    "report": re.compile("item.?report", re.IGNORECASE),
}
UNWANTED: list[tuple[dict[str, str], list[str]]] = [
    ({"cache_backend": "redis"}, ["file", "rabbitmq"]),
    ({"cache_backend": "file"}, ["rabbitmq"]),
    ({"cache_backend": "file", "task_queue": "rabbitmq"}, ["redis"]),
    ({"cache_backend": "memory", "task_queue": "rabbitmq"}, ["redis", "file"]),
    ({"cache_backend": "none", "task_queue": "redis"}, ["cache", "file", "rabbitmq"]),
    ({"cache_backend": "none", "task_queue": "rabbitmq"}, ["cache", "file", "redis"]),
    ({"task_queue": "none"}, ["queue", "rabbitmq"]),
    ({"cache_backend": "memory", "task_queue": "none"}, ["queue", "redis", "rabbitmq"]),
    ({"cache_backend": "all", "task_queue": "all", "scheduler": "no"}, ["scheduler"]),
    (
        {"cache_backend": "none", "task_queue": "none", "scheduler": "no"},
        ["cache", "file", "redis", "queue", "rabbitmq", "scheduler", "report"],
    ),
]
# Where a word means something else.
OTHERWISE = re.compile(
    r"lru_cache|cache_logger_on_first_use|functools\.cache|import cache\b|@cache\b|cached_property|cache_(clear|info)"  # Python's, structlog's
    r"|__pycache__|PYTHONPYCACHEPREFIX|\.\*_cache|\.cache|\.(mypy|ruff|pytest|hypothesis|import_linter)_cache|cache_dir"  # tools'
    r"|cache-dependency-path|PIP_CACHE_DIR|(\s|^)cache: pip|^  cache:$|type=cache|the cache mount"  # pipelines'
    r"|cache hit|caches in \$HOME"  # Docker's
    r"|(?i:prepared_statement_cache_size|InvalidCachedStatementError|cached (statement|plan)|query_cache)"
    r"|(?i:cache-control)|message_cache|propcache"  # HTTP's, Dramatiq's, aiormq's
    r"|BackgroundTasks?\b|a background task",  # Starlette's
    re.MULTILINE,
)


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


def texts(folder: Path) -> dict[Path, str]:
    """Return the text files of a folder."""
    found = {}
    for file in files_under(folder):
        content = (folder / file).read_bytes()
        if b"\0" not in content:
            found[file] = content.decode("utf-8")
    return found


@pytest.mark.parametrize("answers", ANSWERS, ids=str)
def test_a_project_shows_no_trace_of_its_template(bake: Bake, answers: dict[str, str]) -> None:
    """No tag, no brace of Jinja's and not the name of the tool in any file or file name."""
    for file, text in texts(bake(**answers).path).items():
        assert "cookiecutter" not in text.lower() + file.as_posix(), file
        assert not TAG.search(text), file
        if not file.is_relative_to(COPIED):
            assert not re.search(r"\{\{|\{%|\{#", text), file


@pytest.mark.parametrize("answers", ANSWERS, ids=str)
def test_a_project_reads_as_if_written_by_hand(bake: Bake, answers: dict[str, str]) -> None:
    """No gap or missing gap where a condition was, no import of one name in parentheses."""
    for file, text in texts(bake(**answers).path).items():
        assert text == text.lstrip("\n").rstrip("\n") + "\n" * bool(text), file
        assert "\n\n\n\n" not in text, file
        if file.suffix == ".py":
            assert not re.search(r"^from \S+ import \(\n    \w+,\n\)$", text, re.MULTILINE), file
        else:
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


@pytest.mark.parametrize(("answers", "unwanted"), UNWANTED, ids=str)
def test_a_project_names_nothing_but_its_own(
    bake: Bake, answers: dict[str, str], unwanted: list[str]
) -> None:
    """No word of what was not chosen is in any file or file name."""
    found = [
        f"{file}: {line.strip()}"
        for file, text in texts(bake(**answers).path).items()
        for line in [file.as_posix(), *text.splitlines()]
        for feature in unwanted
        if WORDS[feature].search(OTHERWISE.sub("", line))
    ]
    assert found == []


def test_the_full_project_is_the_source_less_its_tags(bake: Bake, service: Path) -> None:
    """Every line is the same but for tag lines, which are gone, and plain variables, filled in."""
    project = bake(cache_backend="all", task_queue="all")
    unchosen = dropped(project)
    assert project.files() == [
        file
        for file in files_under(service)
        if not any(file.is_relative_to(path) for path in unchosen)
    ]
    for file, source in texts(service).items():
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
    for file, text in texts(service).items():
        if file.suffix == ".py":
            ast.parse(text)
            assert not re.search(r"\{\{|\{%|\{#", text), file


def test_tags_are_few_and_simple(service: Path) -> None:
    """Only ``if`` and ``endif``, one level deep, and within a budget."""
    used: Counter[bool] = Counter()
    for file, text in texts(service).items():
        words = [match[1] for match in TAG.finditer(text)]
        assert words == ["if", "endif"] * (len(words) // 2), file
        used[file.suffix == ".md"] += len(words)
    assert used[False] <= TAG_BUDGET
    assert used[True] <= TAG_BUDGET_OF_PROSE


def test_conditions_ask_for_the_private_forms(service: Path) -> None:
    """``cookiecutter.scheduler`` may be the word ``no``, which is true; ``__scheduler`` is empty then."""
    for file, text in texts(service).items():
        assert not re.search(r"cookiecutter\.(scheduler|task_queue)\b", text), file
