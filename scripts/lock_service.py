"""Pin the service's requirements: scaffold it, let its own `make lock` work, take the result.

Once with everything, and once without each feature: what is missing then stands in its tag.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parents[1]
SERVICE = ROOT / "{{cookiecutter.project_slug}}"
FILES = ("requirements.txt", "requirements-dev.txt")
BOTH_BROKERS = {"__queue_redis": "yes", "__queue_rabbitmq": "yes"}  # no answer gives both
EVERYTHING = {"cache_backend": "all", **BOTH_BROKERS}
# The condition of a feature that brings packages, and answers that lack nothing but that: first
# the parts, then the whole, to which belongs what is in none of its parts.
FEATURES = {
    "cookiecutter.__queue_rabbitmq": {"__queue_rabbitmq": ""},
    "cookiecutter.__queue": dict.fromkeys(BOTH_BROKERS, ""),
    "cookiecutter.__redis": {"cache_backend": "file", "__queue_redis": ""},
    "cookiecutter.scheduler": {"scheduler": "no"},
}
# What else names the version of a pinned package: the file, what stands before, the package.
FOLLOWERS = [
    (".pre-commit-config.yaml", "astral-sh/ruff-pre-commit\n    rev: v", "ruff"),
    ("Dockerfile", "FROM ghcr.io/astral-sh/uv:", "uv"),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        full = lock(Path(folder) / "full", EVERYTHING)
        lacking = {
            condition: lock(Path(folder) / condition, EVERYTHING | answers, constraints=full)
            for condition, answers in FEATURES.items()
        }
        for name in FILES:
            lines = (full / name).read_text("utf-8").splitlines()
            without = {
                condition: set((project / name).read_text("utf-8").splitlines())
                for condition, project in lacking.items()
            }
            text = "\n".join(tagged(lines, without)) + "\n"
            (SERVICE / name).write_text(text, "utf-8")
    follow((SERVICE / "requirements-dev.txt").read_text("utf-8"))


def lock(folder: Path, answers: dict[str, str], constraints: Path | None = None) -> Path:
    """Scaffold a project and pin its requirements, those that are constrained as there."""
    project = Path(
        cookiecutter(str(ROOT), no_input=True, extra_context=answers, output_dir=str(folder))
    )
    # The tools of this environment serve: the project needs none of its own.
    (project / ".venv").mkdir()
    (project / ".venv" / ".installed").touch()
    environment = dict(os.environ)
    if constraints:
        environment["UV_CONSTRAINT"] = str(constraints / "requirements-dev.txt")
    binaries = Path(sys.executable).parent
    subprocess.run(["make", "lock", f"BIN={binaries}"], cwd=project, env=environment, check=True)
    return project


def tagged(lines: list[str], without: dict[str, set[str]]) -> list[str]:
    """Move the lines that belong to a feature to the end, each feature's in one tag."""
    result, ends = lines, []
    for condition, left in without.items():
        own = [line for line in result if line not in left]
        result = [line for line in result if line in left]
        ends += [f"# % if {condition}", *own, "# % endif"]
    return result + ends


def follow(pins: str) -> None:
    """Bring the other files that name a version to the one that is pinned."""
    versions = dict(re.findall(r"^([\w-]+)==([\w.]+)", pins, re.MULTILINE))
    for name, before, package in FOLLOWERS:
        path = SERVICE / name
        text = path.read_text("utf-8")
        written, count = re.subn(
            rf"({re.escape(before)})[\d.]+", rf"\g<1>{versions[package]}", text
        )
        if count != 1:
            sys.exit(f"{name} does not name the version of {package}.")
        path.write_text(written, "utf-8")


if __name__ == "__main__":
    main()
