"""Pin the service's requirements: generate projects and run their own `make lock`.

The arguments of this script are passed to `make`: `upgrade=1`.

One project has every feature, the others lack one each. Pins that are missing in a project go between
the tags of the feature that it lacks.
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
BOTH_BROKERS = {"__queue_redis": "yes", "__queue_rabbitmq": "yes"}  # no answer selects both
BOTH_LOGINS = {"__oidc": "yes", "__users": "yes"}  # nor both of these
EVERYTHING = {"cache_backend": "all", **BOTH_BROKERS, **BOTH_LOGINS}
# The condition of each feature with packages, and answers that deselect it. Parts come before the
# whole, which gets the remaining pins.
FEATURES = {
    "cookiecutter.__queue_rabbitmq": {"__queue_rabbitmq": ""},
    "cookiecutter.__queue": dict.fromkeys(BOTH_BROKERS, ""),
    "cookiecutter.__redis": {"cache_backend": "file", "__queue_redis": ""},
    "cookiecutter.scheduler": {"scheduler": "no"},
    "cookiecutter.__oidc": {"__oidc": ""},
    "cookiecutter.__users": {"__users": ""},
    "cookiecutter.__oidc or cookiecutter.__users": dict.fromkeys(BOTH_LOGINS, ""),
}
# Other files with the version of a pinned package: the file, the text before the version, the package.
FOLLOWERS = [
    (".pre-commit-config.yaml", "astral-sh/ruff-pre-commit\n    rev: v", "ruff"),
    ("Dockerfile", "FROM ghcr.io/astral-sh/uv:", "uv"),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        full = lock(Path(folder) / "full", EVERYTHING)
        reduced = {
            condition: lock(Path(folder) / condition, EVERYTHING | answers, constraints=full)
            for condition, answers in FEATURES.items()
        }
        for name in FILES:
            without = {
                condition: set(map(name_of, pins_of(project / name)))
                for condition, project in reduced.items()
            }
            text = "".join(tagged(pins_of(full / name), without))
            (SERVICE / name).write_text(text, "utf-8")
    follow((SERVICE / "requirements-dev.txt").read_text("utf-8"))


def lock(folder: Path, answers: dict[str, str], constraints: Path | None = None) -> Path:
    """Generate a project and pin its requirements, at the constraints' versions."""
    project = Path(
        cookiecutter(str(ROOT), no_input=True, extra_context=answers, output_dir=str(folder))
    )
    # Mark the project as set up: it uses the tools of this environment.
    (project / ".venv").mkdir()
    (project / ".venv" / ".installed").touch()
    environment = dict(os.environ)
    if constraints:
        environment["UV_CONSTRAINT"] = str(constraints / "requirements-dev.txt")
    binaries = Path(sys.executable).parent
    command = ["make", "lock", f"BIN={binaries}", *sys.argv[1:]]
    subprocess.run(command, cwd=project, env=environment, check=True)
    return project


def pins_of(path: Path) -> list[str]:
    """Return each comment, and each pin with the indented lines of its hashes."""
    return re.findall(r"^\S.*\n(?: .*\n)*", path.read_text("utf-8"), re.MULTILINE)


def name_of(pin: str) -> str:
    """Return the package of a pin. Its markers may differ between projects."""
    return pin.partition("==")[0]


def tagged(pins: list[str], without: dict[str, set[str]]) -> list[str]:
    """Move the pins of each feature to the end, between its tags. The hook sorts them again."""
    result, ends = pins, []
    for condition, remaining in without.items():
        own = [pin for pin in result if name_of(pin) not in remaining]
        result = [pin for pin in result if name_of(pin) in remaining]
        ends += [f"# % if {condition}\n", *own, "# % endif\n"]
    return result + ends


def follow(pins: str) -> None:
    """Update the versions in other files."""
    versions = dict(re.findall(r"^([\w-]+)==([\w.]+)", pins, re.MULTILINE))
    for name, before, package in FOLLOWERS:
        path = SERVICE / name
        text = path.read_text("utf-8")
        written, count = re.subn(
            rf"({re.escape(before)})[\d.]+", rf"\g<1>{versions[package]}", text
        )
        if count != 1:
            sys.exit(f"{name} does not contain the version of {package}: fix FOLLOWERS.")
        path.write_text(written, "utf-8")


if __name__ == "__main__":
    main()
