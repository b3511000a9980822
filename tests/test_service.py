"""All code is clean, and the service passes its tests, un-rendered and rendered."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.baked import REPOSITORY, SERVICE
from tests.conftest import Bake

BINARIES = Path(sys.executable).parent
CHECKS = {
    "ruff": ["ruff", "check"],
    "format": ["ruff", "format", "--check"],
    "layers": ["lint-imports"],
    "dependencies": ["deptry", "."],
    "mypy": ["mypy"],
    "tests": ["pytest", "--numprocesses", "2", "--cov", "--quiet"],
}
FAST = ["ruff", "format", "layers", "dependencies"]  # about a second together
CACHES = ["redis", "file", "memory", "all", "none"]
QUEUES = ["redis", "rabbitmq", "none"]
COMBINATIONS = list(itertools.product(CACHES, QUEUES, ["yes", "no"]))
UNRENDERED = "un-rendered"
SLOW_TOO = ["-m", "slow or not slow"]  # once: no answer changes what they are about
VARIANTS = {
    "default": {},
    "rabbitmq": {"cache_backend": "file", "task_queue": "rabbitmq"},
    "unscheduled": {"cache_backend": "memory", "task_queue": "rabbitmq", "scheduler": "no"},
    "uncached": {"cache_backend": "none"},
    "queueless": {"task_queue": "none"},
    "least": {"cache_backend": "none", "task_queue": "none", "scheduler": "no"},
    "all": {"cache_backend": "all", "task_queue": "all"},
}
RUNS = [
    (variant, check)
    for variant in [UNRENDERED, *VARIANTS]
    for check in CHECKS
    # Rendered with everything, it is the source (see test_render.py), and that is tested.
    if (variant, check) != ("all", "tests")
]


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_template_is_clean(command: str) -> None:
    """The template's own code passes what it asks of the service."""
    program, *arguments = command.split()
    done = subprocess.run(
        [BINARIES / program, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("variant", "check"), RUNS)
def test_service_is_clean(bake: Bake, tmp_path: Path, variant: str, check: str) -> None:
    """Each of the service's own checks passes, and leaves nothing in its folder."""
    rendered = variant != UNRENDERED
    service = bake(**VARIANTS[variant]).path if rendered else REPOSITORY / SERVICE
    further = SLOW_TOO if check == "tests" and not rendered else []
    mypy_cache = REPOSITORY / ".mypy_cache" / f"service-{variant}"
    assert_passes(check, service, tmp_path, *further, MYPY_CACHE_DIR=str(mypy_cache))


@pytest.mark.parametrize(("cache", "queue", "scheduler"), COMBINATIONS)
def test_every_combination_is_clean(
    bake: Bake, tmp_path: Path, cache: str, queue: str, scheduler: str
) -> None:
    """Linters find no name that is missing, left over or out of place, whatever was chosen."""
    project = bake(cache_backend=cache, task_queue=queue, scheduler=scheduler)
    for check in FAST:
        assert_passes(check, project.path, tmp_path)


def assert_passes(
    check: str, service: Path, scratch: Path, *further: str, **variables: str
) -> None:
    program, *arguments = CHECKS[check]
    command = [str(BINARIES / program), *arguments, *further]
    done = subprocess.run(
        command,
        cwd=service,
        env=os.environ
        | {
            "COVERAGE_FILE": str(scratch / "coverage"),
            "PYTEST_ADDOPTS": f"-o cache_dir={scratch / 'pytest'} -p no:schemathesis",
            "PYTHONPYCACHEPREFIX": str(scratch / "bytecode"),
            "RUFF_CACHE_DIR": str(REPOSITORY / ".ruff_cache" / "service"),
        }
        | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
