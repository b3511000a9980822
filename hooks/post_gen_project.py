"""Drop what was not chosen, then say how to go on.

May run any number of times in the same folder, as ``cruft update`` makes it do.
Standard library only.
"""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

ANSWERS = r"""{{ cookiecutter | tojson }}"""

# A path stays where its question has one of the answers.  To add a feature, add a row.
FEATURES = [
    # question, answers, paths
    (
        "cache_backend",
        {"redis", "file", "memory", "all"},
        [
            "docs/cache.md",
            "src/api/response_cache.py",
            "src/api/v1/endpoints/cache.py",
            "src/cache",
            "src/core/cache_type.py",
            "src/schemas/cache.py",
            "src/tasks/middleware/caching.py",
            "tests/test_api/test_cache_endpoints.py",
            "tests/test_api/test_cached_items.py",
            "tests/test_api/test_response_cache.py",
            "tests/test_cache",
        ],
    ),
    (
        "cache_backend",
        {"redis", "file", "all"},
        [
            "src/cache/engine/circuit_breaker.py",
            "tests/test_cache/reader.py",
            "tests/test_cache/test_away.py",
            "tests/test_cache/test_circuit_breaker.py",
        ],
    ),
    (
        "cache_backend",
        {"redis", "all"},
        [
            "src/cache/backends/redis.py",
            "tests/test_cache/test_redis",
        ],
    ),
    (
        "cache_backend",
        {"file", "all"},
        [
            "src/cache/backends/file.py",
            "src/cache/backends/sqlite.py",
            "tests/test_cache/test_file.py",
            "tests/test_cache/test_file_caching.py",
        ],
    ),
    (
        "__redis",
        {"yes"},
        [
            "dev/valkey.py",
            "src/core/redis_url.py",
            "tests/test_core/test_redis_settings.py",
            "tests/test_dev/test_valkey.py",
        ],
    ),
    (
        "__queue",
        {"yes"},
        [
            "alembic/versions/20261123_0520_create_tasks.py",
            "alembic/versions/20261123_0530_create_item_import.py",
            "docs/tasks.md",
            "src/api/accepted.py",
            "src/api/v1/endpoints/item_imports.py",
            "src/api/v1/endpoints/tasks.py",
            "src/core/broker_type.py",
            "src/db/models/item_import.py",
            "src/db/models/task.py",
            "src/domain/item_import.py",
            "src/domain/task.py",
            "src/repositories/item_import.py",
            "src/repositories/task.py",
            "src/schemas/item_import.py",
            "src/schemas/task.py",
            "src/services/item_import.py",
            "src/services/task.py",
            "src/tasks",
            "src/worker.py",
            "tests/test_api/test_tasks.py",
            "tests/test_cache/test_imported.py",
            "tests/test_cache/test_in_tasks.py",
            "tests/test_domain/test_item_import.py",
            "tests/test_services/test_item_import.py",
            "tests/test_tasks",
        ],
    ),
    (
        "__queue_redis",
        {"yes"},
        [
            "src/tasks/engine/brokers/redis.py",
            "tests/test_tasks/servers/redis.py",
            "tests/test_tasks/test_brokers/test_redis.py",
            "tests/test_tasks/test_brokers/test_redis_settings.py",
        ],
    ),
    (
        "__queue_rabbitmq",
        {"yes"},
        [
            ".github/packages",
            "dev/rabbitmq.py",
            "src/core/rabbitmq_url.py",
            "src/tasks/engine/brokers/rabbitmq.py",
            "tests/test_dev/test_rabbitmq.py",
            "tests/test_tasks/servers/rabbitmq.py",
            "tests/test_tasks/test_brokers/test_rabbitmq.py",
            "tests/test_tasks/test_brokers/test_rabbitmq_settings.py",
        ],
    ),
    (
        "__scheduler",
        {"yes"},
        [
            "alembic/versions/20261123_0300_create_scheduler.py",
            "docs/scheduler.md",
            "src/api/v1/endpoints/scheduler.py",
            "src/db/models/scheduler.py",
            "src/domain/scheduler.py",
            "src/domain/staleness.py",
            "src/repositories/scheduler.py",
            "src/repositories/stale_items.py",
            "src/schedulers",
            "src/schemas/scheduler.py",
            "src/services/scheduler.py",
            "src/services/stale_items.py",
            "tests/test_api/test_scheduler_endpoints.py",
            "tests/test_cache/test_scheduled.py",
            "tests/test_schedulers",
        ],
    ),
    (
        "__background",
        {"yes"},
        [
            "src/core/context.py",
            "src/db/batches.py",
            "src/repositories/statements.py",
        ],
    ),
    (
        "ci_provider",
        {"github"},
        [
            ".github/dependabot.yml",
            ".github/packages",
            ".github/python-version",
            ".github/workflows/ci.yml",
            ".github/workflows/lock.yml",
        ],
    ),
    ("ci_provider", {"gitlab"}, [".gitlab-ci.yml", "renovate.json"]),
]

# An import in parentheses of which only one name was chosen; in the template each has its line.
LONELY_IMPORT = re.compile(r"^(from [\w.]+ import )\(\n    (\w+),\n\)$", re.MULTILINE)

# What a migration is called, and which one it follows.
REVISION = re.compile(r"""^revision\b.*= ["'](\w+)""", re.MULTILINE)
DOWN_REVISION = re.compile(r"""^(down_revision\b.*= ["'])(\w+)""", re.MULTILINE)

WHAT_NOW = """
%s is ready. What now:

  cd %s
  make dev     starts it, with a database of its own
  make test    runs its tests"""

# What tools leave behind when they run in the template's own folder: a render of it shall equal
# a render of a clean clone.  (``_copy_without_render`` keeps Jinja off their binary files.)
# Nothing here that could not be made again, since the folder may be a project at work.
CACHES = [
    "**/__pycache__",
    ".coverage",
    ".coverage.*",
    ".hypothesis",
    ".import_linter_cache",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
]


def drop(path):
    """Remove a file or a folder, if it is there, and the folders that this leaves empty."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    for parent in path.parents:
        if parent == Path() or not parent.is_dir() or any(parent.iterdir()):
            return
        parent.rmdir()


def drop_unchosen(answers):
    for question, kept_by, paths in FEATURES:
        if answers[question] not in kept_by:
            for path in paths:
                drop(Path(path))


def rewrite(path, pattern, replacement):
    """Replace each match, and leave a file without one alone, line ends and all."""
    source = path.read_bytes().decode("utf-8")
    written = pattern.sub(replacement, source)
    if written != source:
        path.write_bytes(written.encode("utf-8"))


def join_lonely_imports():
    for pattern in ("*.py", "dev/**/*.py", "src/**/*.py", "tests/**/*.py"):
        for path in Path().glob(pattern):
            rewrite(path, LONELY_IMPORT, r"\1\2")


def migrations():
    """Return of each migration which one it follows; of the first, and of one that merges, None."""
    followed = {}
    for path in Path().glob("alembic/versions/*.py"):
        source = path.read_text("utf-8")
        before = DOWN_REVISION.search(source)
        for revision in REVISION.findall(source):
            followed[revision] = before and before.group(2)
    return followed


def relink_migrations(followed):
    """Let whatever followed a migration that is gone follow what that one did."""
    left = migrations()

    def relinked(match):
        revision = match.group(2)
        while revision in followed and revision not in left:
            revision = followed[revision]
        return match.group(1) + revision

    for path in Path().glob("alembic/versions/*.py"):
        rewrite(path, DOWN_REVISION, relinked)


def drop_caches():
    for pattern in CACHES:
        for path in list(Path().glob(pattern)):
            drop(path)


def own_dependency(slug):
    """Tell whether a pinned dependency has the project's name: uv refuses to lock such a one."""
    pin = re.compile(r"^%s==" % re.escape(slug), re.MULTILINE)
    return any(pin.search(path.read_text("utf-8")) for path in Path().glob("requirements*.txt"))


def updating(answers):
    """Tell a ``cruft update``: cruft names no output folder, and updates in a temporary one."""
    temporary = Path(tempfile.gettempdir()).resolve()
    return "_output_dir" not in answers and temporary in Path.cwd().parents


def finish(answers):
    """Do all there is to do; return a sentence if the project cannot be, or else None."""
    slug = answers["project_slug"]
    followed = migrations()
    drop_unchosen(answers)
    relink_migrations(followed)
    drop_caches()
    join_lonely_imports()
    if updating(answers):
        return None
    if own_dependency(slug):
        return "project_slug cannot be %r, the name of a package it needs; use another." % slug
    print(WHAT_NOW % (slug, slug))
    return None


if __name__ == "__main__":
    verdict = finish(json.loads(ANSWERS))
    Path(__file__).unlink()  # the rendered copy, which cookiecutter leaves in the temporary folder
    sys.exit(verdict)
