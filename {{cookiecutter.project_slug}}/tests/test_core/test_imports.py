"""The start of the service imports only what it needs."""

import subprocess
import sys

from src.core.config import ROOT

# Libraries of commands and of development, and what they bring along: half a second.
UNUSED = {"alembic", "mako", "pytest", "typer"}


def test_start_does_not_import_libraries_that_it_does_not_use() -> None:
    """If it does, import them where they are used."""
    code = "import sys, main; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)

    assert not UNUSED & set(done.stdout.decode().split())
