"""All code is clean, and the service passes its tests, un-rendered and rendered."""

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
    "mypy": ["mypy"],
    "layers": ["lint-imports"],
    "dependencies": ["deptry", "."],
    "tests": ["pytest", "--numprocesses", "2", "--cov", "--quiet"],
}
CACHES = ["redis", "file", "memory", "all", "none"]
UNRENDERED = "un-rendered"
SLOW_TOO = ["-m", "slow or not slow"]  # once: no answer changes what they are about
VARIANTS = {answer: {"cache_backend": answer} for answer in CACHES} | {
    "unscheduled": {"scheduler": "no"},
    "least": {"cache_backend": "none", "scheduler": "no"},
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
    command = [str(BINARIES / CHECKS[check][0]), *CHECKS[check][1:]]
    if check == "tests" and not rendered:
        command += SLOW_TOO
    done = subprocess.run(
        command,
        cwd=service,
        env=os.environ
        | {
            "COVERAGE_FILE": str(tmp_path / "coverage"),
            "MYPY_CACHE_DIR": str(REPOSITORY / ".mypy_cache" / f"service-{variant}"),
            "PYTEST_ADDOPTS": f"-o cache_dir={tmp_path / 'pytest'} -p no:schemathesis",
            "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode"),
            "RUFF_CACHE_DIR": str(REPOSITORY / ".ruff_cache" / "service"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
