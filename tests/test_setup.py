"""The development environment: the Python that `make` selects, and uv with the pinned versions."""

import json
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import Bake
from tests.subprocesses import BINARIES, attempt, run
from tests.test_requirements import parsed

# Answers `-m venv`, `--version` and `-c`.
FAKE = "#!/bin/sh\ncase $1 in -m) exit 1;; --version) echo Python 3.12.1;; *) exit %d;; esac\n"


@pytest.mark.parametrize(
    ("status", "used", "says"),
    [
        (0, "python3.14", "Preparing .venv"),
        (127, "python3", "Using Python 3.12.1: no working python3.14 was found."),
    ],
    ids=["works", "pyenv_without_it"],
)
def test_make_prefers_the_selected_python(
    bake: Bake, tmp_path: Path, status: int, used: str, says: str
) -> None:
    project = bake(python_version="3.14").path
    for name, code in (("python3.14", status), ("python3", 0)):
        (tmp_path / name).write_text(FAKE % code)
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    assert f'"{used}" -m venv .venv' in run("make", "-n", "setup", cwd=project, env=path)
    lines = attempt("make", "setup", cwd=project, env=path).stdout.splitlines()
    assert any(line.startswith(says) for line in lines)  # `make test` prints more


@pytest.mark.parametrize(("version", "options"), [("3.12.1", ""), ("3.11.2", " --clear")])
def test_make_replaces_an_environment_of_another_python(
    bake: Bake, tmp_path: Path, version: str, options: str
) -> None:
    project = bake().path
    before, python = project / ".venv/bin/python", tmp_path / "python"
    before.parent.mkdir(parents=True)
    before.write_text(f"#!/bin/sh\necho Python {version}\n")
    python.write_text(
        '#!/bin/sh\ncase $1 in -m) echo "$@"; exit 1;; -V) echo Python 3.12.1; esac\n'
    )
    for program in (before, python):
        program.chmod(0o755)
    output = attempt("make", "setup", f"PYTHON={python}", cwd=project).stdout
    assert f"-m venv .venv{options}\n" in output


@pytest.mark.parametrize("queue", ["redis", "rabbitmq"])
def test_the_development_container_has_what_make_dev_needs(render: Bake, queue: str) -> None:
    project = render(task_queue=queue, python_version="3.12")
    container = json.loads(project.read_file(".devcontainer/devcontainer.json"))
    settings = project.read_file("src/core/config.py")
    makefile = project.read_file("Makefile")
    recommended = json.loads(project.read_file(".vscode/extensions.json"))["recommendations"]
    command = container["postCreateCommand"]

    assert container["image"] == "mcr.microsoft.com/devcontainers/python:3.12"
    assert [f"PORT: Port = {port}" in settings for port in container["forwardPorts"]] == [True]
    assert f"{command.rpartition(' make ')[2]}: " in makefile
    assert "xargs sudo apt-get install --yes < .devcontainer/packages" in command
    assert project.has_file(".devcontainer/packages") == (queue == "rabbitmq")
    assert set(container["customizations"]["vscode"]["extensions"]) <= set(recommended)


def test_uv_installs_the_pinned_versions(bake: Bake) -> None:
    """The commands of DEVELOPER-GUIDE.md, in one variant."""
    project = bake(task_queue="none", scheduler="no")
    run("make", "uv.lock", f"BIN={BINARIES}", cwd=project.path)
    packages = tomllib.loads(project.read_file("uv.lock"))["package"]
    locked = {(each["name"], each["version"]) for each in packages if "registry" in each["source"]}
    pins = parsed(project.read_file("requirements-dev.txt"))

    assert locked == {(pin.name, str(pin.specifier).removeprefix("==")) for pin in pins}
    run("uv", "sync", "--quiet", "--python", sys.executable, cwd=project.path)
    assert "doctor" in run("uv", "run", "python", "cli.py", "--help", cwd=project.path)
