"""Pin the service's requirements: scaffold it, let its own `make lock` work, take the result."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parents[1]
SERVICE = ROOT / "{{cookiecutter.project_slug}}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(cookiecutter(str(ROOT), no_input=True, output_dir=folder))
        # The tools of this environment serve: the project needs none of its own.
        (project / ".venv").mkdir()
        (project / ".venv" / ".installed").touch()
        binaries = Path(sys.executable).parent
        subprocess.run(["make", "lock", f"BIN={binaries}"], cwd=project, check=True)
        for name in ("requirements.txt", "requirements-dev.txt"):
            shutil.copy(project / name, SERVICE / name)


if __name__ == "__main__":
    main()
