"""Lint the pipelines and the configuration of update bots, of the template and of the service."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Bake
from tests.project import REPOSITORY, SERVICE, BakedProject
from tests.subprocesses import BINARIES, attempt, run

TEMPLATE = REPOSITORY / ".github"
SOURCE = REPOSITORY / SERVICE / ".github"  # copied, not rendered
WORKFLOWS = [*sorted(TEMPLATE.glob("workflows/*.yml")), *sorted(SOURCE.glob("workflows/*.yml"))]
SCHEMA = ["check-jsonschema", "--builtin-schema"]
SCHEMAS = {  # for each provider: its files and their published schemas
    "github": {
        ".github/workflows/ci.yml": "vendor.github-workflows",
        ".github/workflows/lock.yml": "vendor.github-workflows",
        ".github/dependabot.yml": "vendor.dependabot",
    },
    "gitlab": {".gitlab-ci.yml": "vendor.gitlab-ci", "renovate.json": "vendor.renovate"},
    "none": {},
}
# GitHub's own actions may be pinned by major version; others need a commit.
ZIZMOR = {"rules": {"unpinned-uses": {"config": {"policies": {"actions/*": "ref-pin"}}}}}
# Write permissions of jobs.
MAY_WRITE = {
    ("lock.yml", "propose"): {"contents", "pull-requests"},
    ("newest.yml", "propose"): {"contents", "pull-requests"},
    ("newest.yml", "report"): {"issues"},
}


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return document


def lint(*command: str | Path) -> str:
    """Return a linter's output if it fails, else nothing; actionlint needs ShellCheck on the PATH."""
    path = f"{BINARIES}:{os.environ['PATH']}"
    done = attempt(*command, cwd=REPOSITORY, env={"PATH": path})
    return str(done.stdout) if done.returncode else ""


@pytest.mark.parametrize("provider", SCHEMAS)
def test_a_project_has_the_files_of_its_provider(render: Bake, provider: str) -> None:
    """Each matches its schema, also with RabbitMQ, which changes it; no other file exists."""
    project = render(ci_provider=provider, task_queue="rabbitmq")
    every = {file for files in SCHEMAS.values() for file in files}
    assert {file for file in every if project.has_file(file)} == set(SCHEMAS[provider])
    assert project.has_file(".github") == (provider == "github")
    for file, schema in SCHEMAS[provider].items():
        assert not lint(*SCHEMA, schema, project.path / file)


@pytest.mark.parametrize(
    "command",
    [
        [*SCHEMA, "vendor.github-workflows", *WORKFLOWS],
        [*SCHEMA, "vendor.dependabot", TEMPLATE / "dependabot.yml"],
        ["actionlint", *WORKFLOWS],
    ],
    ids=["workflows", "dependabot", "actionlint"],
)
def test_linters_find_nothing(command: list[str | Path]) -> None:
    assert not lint(*command)


def test_zizmor_finds_nothing(tmp_path: Path) -> None:
    """No unneeded permission or token, and no template injection."""
    config = tmp_path / "zizmor.yml"
    config.write_text(json.dumps(ZIZMOR), "utf-8")
    assert not lint("zizmor", "--offline", "--config", config, TEMPLATE, SOURCE)


@pytest.mark.parametrize(
    ("linter", "old", "new"),
    [
        ([*SCHEMA, "vendor.github-workflows"], "runs-on", "run-on"),
        (["actionlint"], "${{ needs.lock.outputs.diff }}", "${{ needs.lock.output.diff }}"),
        (["actionlint"], '"$GITHUB_OUTPUT"', "$GITHUB_OUTPUT"),
        (["zizmor", "--offline"], '"$DIFF"', '"${{ github.head_ref }}"'),
    ],
    ids=["key", "expression", "script", "injection"],
)
def test_linters_find_errors(tmp_path: Path, linter: list[str], old: str, new: str) -> None:
    """Each linter finds the kind of error that it is used for."""
    source = (SOURCE / "workflows/lock.yml").read_text("utf-8")
    assert old in source
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(source.replace(old, new), "utf-8")
    assert lint(*linter, wrong)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=str)
def test_jobs_have_a_timeout_and_minimal_permissions(workflow: Path) -> None:
    document = read(workflow)
    assert set(document["permissions"].values()) <= {"read"}
    for name, job in document["jobs"].items():
        assert job["timeout-minutes"] <= 300, name
        rights = job.get("permissions", {})
        writable = {right for right, degree in rights.items() if degree == "write"}
        assert writable == MAY_WRITE.get((workflow.name, name), set()), name


def test_all_green_waits_for_every_job() -> None:
    jobs = read(TEMPLATE / "workflows/ci.yml")["jobs"]
    assert set(jobs["all-green"]["needs"]) == set(jobs) - {"all-green"}


def test_pipelines_use_existing_make_targets(render: Bake) -> None:
    """GitHub's matrix has the same targets as GitLab's jobs."""
    for path in WORKFLOWS:
        makefile = path.parents[2] / "Makefile"
        known = set(re.findall(r"^([\w./-]+):", makefile.read_text("utf-8"), re.MULTILINE))
        matrix = read(path)["jobs"].get("make", {"strategy": {"matrix": {"target": []}}})
        named = {*re.findall(r"\bmake ([\w-]+)", path.read_text("utf-8"))}
        assert {*named, *matrix["strategy"]["matrix"]["target"]} <= known, path
    jobs = read(render(ci_provider="gitlab").path / ".gitlab-ci.yml")
    extended = [name for name, job in jobs.items() if ".make" in str(job) and name != ".make"]
    github = read(SOURCE / "workflows/ci.yml")["jobs"]["make"]["strategy"]["matrix"]["target"]
    assert extended == github


def test_update_bots_can_read_the_lock_commands(bake: Bake) -> None:
    """The first lines of the pins are the commands of `make lock`, with `=` before each value."""
    project = with_environment(bake())
    planned = run("make", "--dry-run", "lock", "BIN=", cwd=project.path)
    commands = re.findall(r"^/(uv pip compile .*)$", planned, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        [file] = re.findall(r"--output-file=(\S+)", command)
        header = project.read_file(file).splitlines()[1].removeprefix("#    ")
        assert header == command.replace(" --quiet", "")
    upgrade = run("make", "--dry-run", "lock", "upgrade=1", "BIN=", cwd=project.path)
    assert upgrade.count(" --quiet --upgrade --universal ") == 2


def test_pins_are_in_the_order_of_uv(render: Bake) -> None:
    """So that `make lock` or an update bot changes only the lines of the packages that change."""
    for file in ("requirements.txt", "requirements-dev.txt"):
        lines = render().read_file(file).splitlines()
        names = [line.partition("==")[0] for line in lines if not line.startswith(("#", " "))]
        assert names == sorted(names)


def test_missing_migration_is_found(bake: Bake, tmp_path: Path) -> None:
    """`make check-migrations`, which pipelines run, fails and names the new column."""
    project = with_environment(bake())
    model = project.path / "src/db/models/item.py"
    first = re.compile(r"^(    \w+: Mapped)", re.MULTILINE)
    model.write_text(first.sub(r"    new: Mapped[str]\n\1", model.read_text("utf-8"), count=1))
    env = {"COVERAGE_FILE": str(tmp_path / "coverage")}
    done = attempt("make", "check-migrations", f"BIN={BINARIES}", cwd=project.path, env=env)
    assert done.returncode != 0
    assert "'new'" in done.stdout


def with_environment(project: BakedProject) -> BakedProject:
    """Mark the project as set up: it uses the tools of this environment."""
    (project.path / ".venv").mkdir()
    (project.path / ".venv/.installed").touch()
    return project
