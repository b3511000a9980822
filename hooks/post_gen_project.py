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
            "src/api/caching.py",
            "src/api/v1/endpoints/cache.py",
            "src/cache",
            "src/core/cache_type.py",
            "src/db/transaction.py",
            "src/schemas/cache.py",
            "tests/test_api/test_cache_endpoints.py",
            "tests/test_api/test_cached_items.py",
            "tests/test_api/test_caching.py",
            "tests/test_cache",
            "tests/test_models/test_transaction.py",
        ],
    ),
    (
        "cache_backend",
        {"redis", "file", "all"},
        [
            "src/cache/resilience.py",
            "tests/test_cache/reader.py",
            "tests/test_cache/test_away.py",
            "tests/test_cache/test_resilience.py",
        ],
    ),
    (
        "cache_backend",
        {"redis", "all"},
        [
            "dev/valkey.py",
            "src/cache/backends/redis.py",
            "src/core/redis_url.py",
            "tests/test_cache/test_redis",
            "tests/test_core/test_redis_settings.py",
            "tests/test_dev/test_valkey.py",
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
    ("ci_provider", {"github"}, [".github/workflows/ci.yml", ".github/python-version"]),
    ("ci_provider", {"gitlab"}, [".gitlab-ci.yml"]),
]

# An import in parentheses of which only one name was chosen; in the template each has its line.
LONELY_IMPORT = re.compile(r"^(from [\w.]+ import )\(\n    (\w+),\n\)$", re.MULTILINE)

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


def join_lonely_imports():
    for pattern in ("*.py", "dev/**/*.py", "src/**/*.py", "tests/**/*.py"):
        for path in Path().glob(pattern):
            source = path.read_bytes().decode("utf-8")
            joined = LONELY_IMPORT.sub(r"\1\2", source)
            if joined != source:
                path.write_bytes(joined.encode("utf-8"))


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
    drop_unchosen(answers)
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
