"""Pipelines and bots for dependencies, the template's own and the service's.

No test needs GitHub or GitLab. Linters read the files, and the scripts in them run here, with a
repository of their own and a stand-in for `gh`.
"""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Bake
from tests.project import REPOSITORY, SERVICE, BakedProject, Terminal
from tests.subprocesses import BINARIES

TEMPLATE = REPOSITORY / ".github"
SOURCE = REPOSITORY / SERVICE / ".github"  # is copied, not rendered
WORKFLOWS = [*sorted(TEMPLATE.glob("workflows/*.yml")), *sorted(SOURCE.glob("workflows/*.yml"))]
OURS = [path for path in WORKFLOWS if path.is_relative_to(TEMPLATE)]
SCHEMAS = {
    ".github/workflows/ci.yml": "vendor.github-workflows",
    ".github/workflows/lock.yml": "vendor.github-workflows",
    ".github/dependabot.yml": "vendor.dependabot",
    ".gitlab-ci.yml": "vendor.gitlab-ci",
    "renovate.json": "vendor.renovate",
}
PROVIDERS = {
    "github": {file for file in SCHEMAS if file.startswith(".github")},
    "gitlab": {".gitlab-ci.yml", "renovate.json"},
    "none": set(),
}
# GitHub's own actions go by major version, which it moves; others would need a commit.
ZIZMOR = {"rules": {"unpinned-uses": {"config": {"policies": {"actions/*": "ref-pin"}}}}}
# What a job may write, by the workflow and the job.
MAY_WRITE = {
    ("lock.yml", "propose"): {"contents", "pull-requests"},
    ("newest.yml", "propose"): {"contents", "pull-requests"},
    ("newest.yml", "report"): {"issues"},
}
# Stands in for `gh`: notes how it was called, and lists what a variable says.
GH = """#!/bin/sh
echo "$*" >> "$GH_CALLS"
case "$2" in list) echo "$GH_LISTS" ;; esac
"""
OUTPUT = re.compile(r"^(\w+)<<END\n(.*)\nEND$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return f"{'template' if path in OURS else 'service'}-{path.name}"


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return document


def run(*command: str | Path, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def lint(*command: str | Path) -> str:
    """Return what a linter of this environment finds, or nothing."""
    path = f"{BINARIES}:{os.environ['PATH']}"
    done = run(BINARIES / command[0], *command[1:], cwd=REPOSITORY, PATH=path)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def step_of(path: Path, job: str, contains: str) -> str:
    """Return the one script of a job that holds some words."""
    scripts = [step.get("run", "") for step in read(path)["jobs"][job]["steps"]]
    [script] = [script for script in scripts if contains in script]
    return str(script)


# What the files say


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_project_has_the_files_of_its_provider(bake: Bake, provider: str) -> None:
    """Each fits the schema that the provider, or the bot, publishes; none is there without one."""
    project = bake(ci_provider=provider)
    assert {file for file in SCHEMAS if project.has_file(file)} == PROVIDERS[provider]
    assert project.has_file(".github") == (provider == "github")
    for file in PROVIDERS[provider]:
        schema = ["--builtin-schema", SCHEMAS[file]]
        assert not lint("check-jsonschema", *schema, project.path / file)


def test_the_pipeline_with_rabbitmq_fits_its_schema(bake: Bake) -> None:
    """The one answer besides the provider that changes GitLab's."""
    pipeline = bake(ci_provider="gitlab", task_queue="rabbitmq").path / ".gitlab-ci.yml"
    assert "rabbitmq-server" in pipeline.read_text("utf-8")
    assert not lint("check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", pipeline)


def test_the_files_of_the_template_fit_their_schemas() -> None:
    schemas = {"github-workflows": OURS, "dependabot": [TEMPLATE / "dependabot.yml"]}
    for schema, files in schemas.items():
        assert files
        assert not lint("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=name_of)
def test_actionlint_finds_nothing(workflow: Path) -> None:
    """Not in expressions, and with ShellCheck not in scripts."""
    assert (BINARIES / "shellcheck").exists()
    assert not lint("actionlint", workflow)


def test_zizmor_finds_nothing(tmp_path: Path) -> None:
    """No right, token or text of strangers where none is needed."""
    config = tmp_path / "zizmor.yml"
    config.write_text(json.dumps(ZIZMOR), "utf-8")
    assert not lint("zizmor", "--offline", "--config", config, TEMPLATE, SOURCE)


@pytest.mark.parametrize(
    ("linter", "old", "new"),
    [
        (["check-jsonschema", "--builtin-schema", "vendor.github-workflows"], "runs-on", "run-on"),
        (["actionlint"], "${{ needs.lock.outputs.diff }}", "${{ needs.lock.output.diff }}"),
        (["actionlint"], '"$GITHUB_OUTPUT"', "$GITHUB_OUTPUT"),
        (["zizmor", "--offline"], '"$DIFF"', '"${{ github.head_ref }}"'),
    ],
    ids=["key", "expression", "script", "injection"],
)
def test_linters_find_a_fault(tmp_path: Path, linter: list[str], old: str, new: str) -> None:
    """Each the kind that it is here for."""
    source = (SOURCE / "workflows/lock.yml").read_text("utf-8")
    assert old in source
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(source.replace(old, new), "utf-8")
    assert lint(*linter, wrong)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=name_of)
def test_jobs_end_and_write_only_what_they_must(workflow: Path) -> None:
    """A job that hangs costs hours; a right that nobody uses helps only a thief."""
    document = read(workflow)
    assert set(document["permissions"].values()) <= {"read"}
    for name, job in document["jobs"].items():
        assert job["timeout-minutes"] <= 300, name
        rights = job.get("permissions", {})
        writable = {right for right, degree in rights.items() if degree == "write"}
        assert writable == MAY_WRITE.get((workflow.name, name), set()), name


def test_pipelines_name_targets_that_exist(bake: Bake) -> None:
    """`make` knows each one, of GitHub's matrix and of GitLab's jobs."""
    project = bake()
    matrix = read(project.path / ".github/workflows/ci.yml")["jobs"]["make"]["strategy"]["matrix"]
    jobs = read(bake(ci_provider="gitlab").path / ".gitlab-ci.yml")
    extended = [name for name, job in jobs.items() if ".make" in str(job) and name != ".make"]
    assert matrix["target"] == extended
    assert_targets([*extended, "setup", "lock"], project.path)


def test_workflows_of_the_template_name_targets_that_exist() -> None:
    targets = {name for path in OURS for name in re.findall(r"\bmake (\w+)", path.read_text())}
    matrix = read(TEMPLATE / "workflows/ci.yml")["jobs"]["make"]["strategy"]["matrix"]
    assert {"lock", "quick", "variants"} <= targets
    assert_targets([*targets, *matrix["target"]], REPOSITORY)


def assert_targets(targets: list[str], folder: Path) -> None:
    makefile = (folder / "Makefile").read_text("utf-8")
    assert set(targets) <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE))


# What they do


@pytest.mark.parametrize("result", ["success", "failure", "cancelled", "skipped"])
def test_all_green_means_that_all_succeeded(tmp_path: Path, result: str) -> None:
    """The last job waits for every other one, and fails where one did anything but succeed."""
    workflow = TEMPLATE / "workflows/ci.yml"
    jobs = read(workflow)["jobs"]
    assert set(jobs["all-green"]["needs"]) == set(jobs) - {"all-green"}
    needs = {name: {"result": "success"} for name in jobs} | {"test": {"result": result}}
    gate = step_of(workflow, "all-green", "jq")
    done = run("bash", "-e", "-c", gate, cwd=tmp_path, NEEDS=json.dumps(needs))
    assert (done.returncode == 0) == (result == "success"), done.stderr


@pytest.fixture
def clone(terminal: Terminal) -> Path:
    """Return a clone of a repository that holds a file with pins."""
    origin = terminal.work / "origin.git"
    folder = terminal.work / "clone"
    folder.mkdir()
    (folder / "requirements.txt").write_text("fastapi==1\n", "utf-8")
    terminal.commit(folder, "first")
    terminal.git(terminal.work, "clone", "--quiet", "--bare", str(folder), str(origin))
    terminal.git(folder, "remote", "add", "origin", str(origin))
    return folder


@pytest.fixture
def gh(tmp_path: Path) -> Path:
    """Return the folder of a `gh` that only notes its calls, in a file beside it."""
    program = tmp_path / "bin/gh"
    program.parent.mkdir()
    program.write_text(GH, "utf-8")
    program.chmod(0o755)
    return program.parent


def calls_of_gh(script: str, cwd: Path, gh: Path, **variables: str) -> list[str]:
    path = f"{gh}:{os.environ['PATH']}"
    calls = str(gh / "calls")
    done = run("bash", "-e", "-c", script, cwd=cwd, PATH=path, GH_CALLS=calls, **variables)
    assert done.returncode == 0, done.stderr
    return (gh / "calls").read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    "workflow",
    [SOURCE / "workflows/lock.yml", TEMPLATE / "workflows/newest.yml"],
    ids=name_of,
)
@pytest.mark.parametrize("already", ["0", "1"])
def test_new_pins_become_one_pull_request(
    terminal: Terminal, clone: Path, gh: Path, workflow: Path, already: str
) -> None:
    """One job tells the difference, the other pushes it, and opens what is not open yet."""
    before = read(workflow)["jobs"]["propose"]["needs"]
    (clone / "requirements.txt").write_text("fastapi==2\n", "utf-8")
    output = gh.parent / "output"
    script = step_of(workflow, before, "git diff").replace("make lock\n", "")
    assert run("bash", "-e", "-c", script, cwd=clone, GITHUB_OUTPUT=str(output)).returncode == 0
    terminal.git(clone, "checkout", "--quiet", ".")
    [(name, diff)] = OUTPUT.findall(output.read_text("utf-8"))
    variables = {"DIFF": diff, "GH_LISTS": already, "RUN": "run"}

    calls = calls_of_gh(step_of(workflow, "propose", "git push"), clone, gh, **variables)

    branch = workflow.stem
    assert name == "diff"
    pushed = terminal.git(terminal.work / "origin.git", "show", f"{branch}:requirements.txt")
    assert pushed == "fastapi==2\n"
    created = [call for call in calls if call.startswith(f"pr create --head {branch}")]
    assert len(created) == (already == "0")


@pytest.mark.parametrize(
    ("number", "expected"), [("", "issue create --title"), ("7", "issue comment 7 --body")]
)
def test_a_release_that_breaks_becomes_one_issue(
    tmp_path: Path, gh: Path, number: str, expected: str
) -> None:
    """With the end of the log, as a quotation; later ones are comments."""
    workflow = TEMPLATE / "workflows/newest.yml"
    lines = [f"line {n}" for n in range(100)] + ["END", "FAILED here"]
    (tmp_path / "newest.log").write_text("\n".join(lines), "utf-8")
    output = tmp_path / "output"
    script = step_of(workflow, "variants", "tail")
    assert run("bash", "-e", "-c", script, cwd=tmp_path, GITHUB_OUTPUT=str(output)).returncode == 0
    [(name, tail)] = OUTPUT.findall(output.read_text("utf-8"))
    variables = {"TAIL": tail, "GH_LISTS": number, "RUN": "the run", "TITLE": "Broken"}

    calls = calls_of_gh(step_of(workflow, "report", "gh issue"), tmp_path, gh, **variables)

    assert name == "tail"
    assert [call for call in calls if call.startswith("issue")][1].startswith(expected)
    assert calls[-60:] == [f"    {line}" for line in lines[-60:]]
    assert "line 41" not in calls
    assert any("the run" in call for call in calls)


def test_bots_can_read_how_the_pins_are_made(bake: Bake) -> None:
    """The first lines of the files are the commands of `make lock`, each value behind a `=`."""
    project = bake().path
    planned = run("make", "--dry-run", "lock", "BIN=", cwd=project).stdout
    commands = re.findall(r"^/(uv pip compile .*)$", planned, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        [file] = re.findall(r"--output-file=(\S+)", command)
        header = (project / file).read_text("utf-8").splitlines()[1].removeprefix("#    ")
        assert header == command.replace(" --quiet --upgrade", "")
        assert [word for word in header.split() if "-" not in word[:1]][3:] == ["pyproject.toml"]


def test_migrations_that_lag_behind_are_found(bake: Bake, tmp_path: Path) -> None:
    """A model with one column more fails the target that pipelines run, by the column's name."""
    project = bake()
    model = project.path / "src/db/models/item.py"
    column = "    forgotten: Mapped[str]\n"
    text = model.read_text("utf-8")
    model.write_text(
        re.sub(r"^(    \w+: Mapped\[)", column + r"\1", text, count=1, flags=re.MULTILINE)
    )
    done = make(project, "migrations", COVERAGE_FILE=str(tmp_path / "coverage"))
    assert done.returncode != 0
    assert "forgotten" in done.stdout


def make(
    project: BakedProject, target: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run a target of a project with the tools of this environment."""
    (project.path / ".venv").mkdir()
    (project.path / ".venv/.installed").touch()
    binaries = Path(sys.executable).parent
    return run("make", target, f"BIN={binaries}", cwd=project.path, **variables)


@contextmanager
def vulnerabilities(vulnerable: str) -> Iterator[str]:
    """Answer, at the address given, as the database OSV does, in which one package is vulnerable."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = [{"id": "PYSEC-0", "summary": "", "affected": [], "modified": "2026-01-01"}]
            answer = {"vulns": known} if asked["package"]["name"] == vulnerable else {}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()


@pytest.mark.parametrize(("vulnerable", "found"), [("nothing", False), ("starlette", True)])
def test_the_audit_finds_a_vulnerable_pin(bake: Bake, *, vulnerable: str, found: bool) -> None:
    """It asks about every pin, and fails where one is known to be vulnerable."""
    with vulnerabilities(vulnerable) as address:
        done = audit(bake(), address)
    assert (done.returncode != 0) == found, done.stdout + done.stderr
    assert bool(re.search(r"^starlette .*PYSEC-0", done.stdout, re.MULTILINE)) == found


def test_the_audit_does_not_pass_for_want_of_an_answer(bake: Bake) -> None:
    """A database that is away is no clean bill of health."""
    with vulnerabilities("nothing") as address:
        pass
    assert audit(bake(), address).returncode != 0


def audit(project: BakedProject, address: str) -> "subprocess.CompletedProcess[str]":
    service = {"PIP_AUDIT_VULNERABILITY_SERVICE": "osv", "PIP_AUDIT_OSV_URL": address}
    return make(project, "audit", NO_PROXY="127.0.0.1", **service)
