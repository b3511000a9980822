"""Helpers of tests: a generated project, and a terminal with the commands that generate one."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
SERVICE = "{{cookiecutter.project_slug}}"


def files_under(folder: Path) -> Iterator[Path]:
    """Yield the relative path of every file in a folder, except git's own files."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and inside.parts[0] != ".git":
            yield inside


def texts_under(folder: Path) -> dict[Path, str]:
    found = {}
    for file in files_under(folder):
        content = (folder / file).read_bytes()
        if b"\0" not in content:
            found[file] = content.decode("utf-8")
    return found


@dataclass(frozen=True)
class BakedProject:
    """A generated project and its answers."""

    path: Path
    answers: dict[str, Any]

    def files(self) -> list[Path]:
        return list(files_under(self.path))

    def has_file(self, name: str) -> bool:
        return (self.path / name).exists()

    def read_file(self, name: str | Path) -> str:
        return (self.path / name).read_text("utf-8")

    def read_toml(self, name: str) -> dict[str, Any]:
        return tomllib.loads(self.read_file(name))

    def is_valid_toml(self, name: str | Path) -> bool:
        try:
            tomllib.loads(self.read_file(name))
        except tomllib.TOMLDecodeError:
            return False
        return True

    def is_valid_yaml(self, name: str | Path) -> bool:
        try:
            list(yaml.compose_all(self.read_file(name), yaml.SafeLoader))  # accepts any tag
        except yaml.YAMLError:
            return False
        return True


@dataclass(frozen=True)
class Terminal:
    """A user's terminal, with a home, a temporary folder and a working folder, all empty."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    def run(
        self, *command: str | bytes | Path, typed: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the working folder and wait for it; `typed` is its standard input."""
        environment = {
            **os.environ,
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{
                f"GIT_{who}_{what}": "tester@example.com"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }
        return subprocess.run(
            command,
            cwd=self.work,
            env=environment,
            input=typed or "",
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )

    def cookiecutter(
        self, template: Path, *options: str, **answers: object
    ) -> subprocess.CompletedProcess[str]:
        """Generate a project with the real command; other answers have their defaults."""
        given = [os.fsencode(f"{question}={answer}") for question, answer in answers.items()]
        return self.run(
            sys.executable, "-m", "cookiecutter", template, "--no-input", *options, *given
        )

    def cookiecutter_typed(self, template: Path, *answers: str) -> subprocess.CompletedProcess[str]:
        """Generate a project with typed answers to the first questions, then Enter."""
        typed = "".join(answer + "\n" for answer in answers) + "\n" * 20
        return self.run(sys.executable, "-m", "cookiecutter", template, typed=typed)

    def replay(self, template: Path) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "cookiecutter", template, "--replay")

    def cruft(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "cruft", *arguments)

    def git(self, folder: Path, *arguments: str | Path) -> str:
        done = self.run("git", "-C", folder, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def commit(self, folder: Path, message: str) -> None:
        """Commit all files of the folder; create a repository if there is none."""
        self.git(folder, "init", "--quiet", "--initial-branch=main")
        self.git(folder, "add", "--all", "--force")
        self.git(folder, "commit", "--quiet", f"--message={message}")

    def leftovers(self) -> list[Path]:
        """Return the files in the working and the temporary folder."""
        return [path for name in ("work", "tmp") for path in (self.root / name).iterdir()]
