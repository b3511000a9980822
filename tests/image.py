"""A Dockerfile, read and, as far as that goes without Docker, built and run in a folder."""

import json
import os
import re
import shlex
import shutil
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_LIMIT = 60  # seconds until a service is healthy


def tool(name: str) -> str | None:
    """Find a command, first among those of this environment."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@dataclass(frozen=True)
class Instruction:
    name: str
    flags: dict[str, list[str]]
    value: str

    @property
    def argv(self) -> list[str]:
        """The command of an instruction in exec form."""
        command: list[str] = json.loads(self.value.removeprefix("CMD "))
        return command


@dataclass
class Stage:
    name: str
    parent: str
    instructions: list[Instruction] = field(default_factory=list)


def read_dockerfile(path: Path) -> dict[str, Stage]:
    """Return the stages by name, in order."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    for line in filter(str.strip, text.splitlines()):
        name, rest = line.split(maxsplit=1)
        if name == "FROM":
            parent, _, alias = rest.split()
            stages[alias] = Stage(alias, parent)
            continue
        flags: dict[str, list[str]] = {}
        while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
            flags.setdefault(match[1], []).append(match[2])
            rest = rest[match.end() :]
        list(stages.values())[-1].instructions.append(Instruction(name, flags, rest.strip()))
    return stages


def lineage(stages: dict[str, Stage], target: str) -> list[Stage]:
    """Return the stages that `target` is built on, oldest first, and itself."""
    line = [stages[target]]
    while line[0].parent in stages:
        line.insert(0, stages[line[0].parent])
    return line


def last(stages: dict[str, Stage], target: str, name: str) -> Instruction:
    """Return the instruction that counts: of its kind, Docker heeds the last one only."""
    everything = [i for stage in lineage(stages, target) for i in stage.instructions]
    return [i for i in everything if i.name == name][-1]


def context(project: Path, destination: Path) -> Path:
    """Copy what .dockerignore lets through."""
    lines = (project / ".dockerignore").read_text().splitlines()
    allowed = [line[1:].rstrip("/") for line in lines if line.startswith("!")]
    assert "*" in lines, "not an allow-list any more"
    for name in allowed:
        source = project / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.py[cod]")
            shutil.copytree(source, destination / name, ignore=ignored)
        else:
            destination.mkdir(exist_ok=True)
            shutil.copy2(source, destination / name)
    return destination


@dataclass
class Image:
    """What `docker build --target` makes, less the operating system: WORKDIR and VIRTUAL_ENV."""

    root: Path
    stages: dict[str, Stage]
    target: str
    context: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def app(self) -> Path:
        return self.root / "app"

    @property
    def python(self) -> Path:
        return self.root / "opt/venv/bin/python"

    def build(self) -> "Image":
        self.app.mkdir(parents=True)
        for stage in lineage(self.stages, self.target):
            self._build(stage)
        return self

    def _build(self, stage: Stage) -> None:
        for instruction in stage.instructions:
            match instruction.name:
                case "ENV":
                    for pair in shlex.split(self._here(instruction.value)):
                        name, _, value = pair.partition("=")
                        known = {"PATH": os.defpath, **self.env}
                        self.env[name] = string.Template(value).substitute(known)
                case "COPY" if "from" in instruction.flags:
                    self._copy_from_stage(instruction)
                case "COPY":
                    *sources, target = instruction.value.split()
                    for source in sources:
                        self._copy(self.context / source, self.app / target, sources)
                # base only makes the account and deletes pip: the operating system's part.
                case "RUN" if stage.name != "base":
                    self._run(instruction)

    def _copy_from_stage(self, instruction: Instruction) -> None:
        source, target = instruction.value.split()
        if (stage := instruction.flags["from"][0]) == "uv":
            return  # it is on PATH here
        assert source == target == "/opt/venv", "a virtual environment does not bear moving"
        before = dict(self.env)
        self._build(self.stages[stage])
        self.env = before  # ENV of a stage copied from is not taken along

    def _copy(self, source: Path, target: Path, sources: list[str]) -> None:
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target / source.name if len(sources) > 1 else target)

    def _run(self, instruction: Instruction) -> None:
        mounts = [
            dict(part.partition("=")[::2] for part in mount.split(","))
            for mount in instruction.flags.get("mount", [])
        ]
        bound = {m["target"]: m["source"] for m in mounts if m["type"] == "bind"}
        for target, source in bound.items():
            shutil.copy2(self.context / source, self._at(target))
        # The account `app` is the image's; who runs the tests need not be able to give files away.
        command = re.sub(r"chown app:app \S+", "true", self._here(instruction.value))
        # The tests' own Python plays the base image's; no UV_… variable may lead uv elsewhere.
        outside = {
            k: v for k, v in os.environ.items() if k not in {"UV_PYTHON", "UV_SYSTEM_PYTHON"}
        }
        places = [self.python.parent, Path(sys.executable).parent]
        path = ":".join([*map(str, places), os.environ["PATH"]])
        subprocess.run(
            ["sh", "-ec", command],
            cwd=self.app,
            env={**outside, **self.env, "PATH": path},
            check=True,
        )
        for target in bound:
            self._at(target).unlink()

    def _at(self, path: str) -> Path:
        """Return where an absolute path of the image lies here."""
        return self.root / path.removeprefix("/")

    def _here(self, text: str) -> str:
        return text.replace("/opt/venv", str(self.root / "opt/venv"))

    def run(self, *argv: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run a command as `docker run` would: with the image's environment and `env`, no more."""
        return subprocess.run(
            [shutil.which(argv[0], path=self.env["PATH"]) or argv[0], *argv[1:]],
            cwd=self.app,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def probe(self, port: int) -> int:
        argv = last(self.stages, self.target, "HEALTHCHECK").argv
        return self.run(*(part.replace("8000", str(port)) for part in argv)).returncode

    @contextmanager
    def started(self, port: int, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run CMD, in which `port` takes the place of 8000."""
        argv = last(self.stages, self.target, "CMD").argv
        executable = self.root / "opt/venv/bin" / argv[0]
        arguments = [str(port) if part == "8000" else part for part in argv[1:]]
        process = subprocess.Popen(
            [executable, *arguments],
            cwd=self.app,
            env={**self.env, **env},
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def files(self) -> set[Path]:
        return {path for path in self.root.rglob("*") if path.is_file()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_healthy(image: Image, port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_LIMIT
    while image.probe(port) != 0:
        assert process.poll() is None, f"CMD ended with {process.returncode}"
        assert time.monotonic() < deadline, f"CMD is not healthy after {START_LIMIT} s"
        time.sleep(0.1)
