"""Words that occur only in a project that has the feature."""

import re
from collections.abc import Iterator
from functools import cache

from tests.variants import Answers

WORDS = {
    "redis": re.compile("redis(?!tribut)|valkey|sentinel", re.IGNORECASE),
    "file": re.compile("sqlite|cache_(file|folder)|FileBackend", re.IGNORECASE),
    "cache": re.compile("cach", re.IGNORECASE),
    "rabbitmq": re.compile("rabbit|amqp|pika|erlang|quorum", re.IGNORECASE),
    "queue": re.compile(  # "worker" alone may be one of the API's, or of pytest-xdist's
        r"dramatiq|broker|outbox|\bactors?\b|enqueue|dead.?letter|redeliver|(task|message).?queue"
        r"|background.?task|cli\.py worker\b|src[./]worker|src[./]tasks|(open_|tasks[./])relay"
        r"|/tasks\b|cli\.py tasks|item[_-]?imports?\b|ItemImport",
        re.IGNORECASE,
    ),
    "scheduler": re.compile("schedul|stale_?item|staleness", re.IGNORECASE),
    "example": re.compile("(?<![a-z])items?(?![a-z])|staleness", re.IGNORECASE),
    "oidc": re.compile(
        r"oidc|open.?id|\bjwks?\b|\bjwts?\b|joserfc|(?<!cluster-)\bissuers?\b|pkce|identity.provider",
        re.IGNORECASE,
    ),
    "users": re.compile(  # "user", "password", "session" and "email" alone have other meanings
        r"src[./]mail|mail_settings|(docs/|\()mail\.md|test_mail|aiosmtp|smtp_(user|password|tls)"
        r"|mail_from|public_url|argon|sign(ed)?.?up\b|__host-"
        r"|login.?session|one.?time.?token|models[./]user\b|(services|endpoints)[./](users|sessions)\b"
        r"|users[:_](read|write)|(reset|change|forgot(ten)?|common)[ _](the |your )?passwords?"
        r"|verif(y|ied)[ _](the |your )?e-?mail",
        re.IGNORECASE,
    ),
    "kubernetes": re.compile("k8s|kubectl|kustom|kubernetes.md", re.IGNORECASE),
    "github": re.compile("github|dependabot", re.IGNORECASE),
    "gitlab": re.compile("gitlab|renovate", re.IGNORECASE),
}
ANY_WORD = re.compile("|".join(f"(?:{word.pattern})" for word in WORDS.values()), re.IGNORECASE)
# Uses of these words with another meaning.
OTHERWISE = re.compile(
    r"lru_cache|cache_logger_on_first_use|functools\.cache|import cache\b|@cache\b|cached_property|cache_(clear|info)"  # Python's, structlog's
    r"|https://github\.com/\S+"  # repositories of pre-commit hooks
    r"|__pycache__|PYTHONPYCACHEPREFIX|\.\*_cache|\.cache|\.(mypy|ruff|pytest|hypothesis|import_linter)_cache|cache_dir"  # tools'
    r"|cache-dependency-path|PIP_CACHE_DIR|(\s|^)cache: pip|^  cache:$|type=cache|the cache mount"  # pipelines'
    r"|cache hit|caches in \$HOME"  # Docker's
    r"|(?i:(prepared_)?statement_cache_size|InvalidCachedStatementError|cached (statement|plan)|query_cache)"
    r"|(?i:cache-control|shared caches|no-cache)|message_cache|FAKETIME_NO_CACHE"  # HTTP's, Dramatiq's, libfaketime's
    r"|ScheduleAnyway"  # Kubernetes'
    r'|^ *schedule:( #.*)?$|"schedule:weekly"'  # pipelines' and bots'
    r"|\.(multi_)?items\(|__(get|set|del)item__|modifyitems|\bitem: pytest\.Item|\brender_item\b|\bitem\.(config|nodeid)\b"  # Python's, pytest's
    r"|followthewhiterabbit"  # a common password
    r"|BackgroundTasks?\b|a[ _]background[ _]task",  # Starlette's
    re.MULTILINE,
)


def unselected(answers: Answers) -> Iterator[str]:
    cache, queue = answers["cache_backend"], answers["task_queue"]
    selected = {
        "redis": cache in {"redis", "all"} or queue == "redis",
        "file": cache in {"file", "all"},
        "cache": cache != "none",
        "rabbitmq": queue == "rabbitmq",
        "queue": queue != "none",
        "scheduler": answers["scheduler"] == "yes",
        "example": answers["example"] == "yes",
        "oidc": answers["auth"] == "oidc",
        "users": answers["auth"] == "users",
        "kubernetes": answers["deployment"] == "kubernetes",
        "github": answers["ci_provider"] == "github",
        "gitlab": answers["ci_provider"] == "gitlab",
    }
    return (feature for feature, is_selected in selected.items() if not is_selected)


def unwanted(answers: Answers, text: str) -> list[str]:
    """Return the lines that name an unselected feature."""
    named = lines_that_name(text)
    return [line for feature in unselected(answers) for line in named[feature]]


@cache  # most files are the same in many variants
def lines_that_name(text: str) -> dict[str, list[str]]:
    """Return the lines with a word of each feature."""
    lines = [line for line in text.splitlines() if ANY_WORD.search(line)]
    others = {line: OTHERWISE.sub("", line) for line in lines}
    return {
        feature: [line for line in lines if word.search(others[line])]
        for feature, word in WORDS.items()
    }
