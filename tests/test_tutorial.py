"""The tutorial of the documentation is true: with its files, its commands say what it shows."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.demo import environment
from tests.project import REPOSITORY
from tests.running import running

PAGE = REPOSITORY / "docs/tutorial.md"
BLOCK = re.compile(
    r"^```(?P<kind>console|\{code-block\} (?:python|diff))\n"
    r"(?::caption: (?P<file>\S+)\n\n)?(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
# What a user types, and what stands in for it: the template under test, not the published one.
ADDRESS = "http://127.0.0.1:8000"
PUBLISHED = "uvx cookiecutter gh:org/fastapi-ignite"
END = "=== the command has ended:"
RELOAD_LIMIT = 30  # seconds until the API has noticed new files
# What differs each time.
VARYING = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|[0-9a-f]{32}|\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|\+00:00)"
)


@dataclass
class Block:
    kind: str
    file: str | None
    text: str

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yield each command of a console block, and the output that is shown for it."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


class Shell:
    """A terminal: what one command sets, such as a variable or the folder, holds for the next."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def run(self, command: str) -> tuple[int, str]:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{{ {command}\n}} </dev/null\nprintf '\\n{END} %s\\n' $?\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.startswith(END):
                return int(line.removeprefix(END)), "".join(lines).removesuffix("\n")
            lines.append(line)
        raise AssertionError(f"{command} has ended the terminal:\n{''.join(lines)}")

    def close(self) -> None:
        self._bash.communicate("exit\n", timeout=10)


def blocks() -> list[Block]:
    return [
        Block(*match.group("kind", "file", "text"))
        for match in BLOCK.finditer(PAGE.read_text("utf-8"))
    ]


def agrees(output: str, shown: str) -> bool:
    """Compare, but for what differs each time; `...` stands for anything."""
    parts = VARYING.sub("<varies>", shown.strip()).split("...")
    pattern = ".*".join(re.escape(part) for part in parts)
    return re.fullmatch(pattern, VARYING.sub("<varies>", output.strip()), re.DOTALL) is not None


@dataclass
class Tutorial:
    """Somebody who does what the page says, with the packages of the template's environment."""

    template: Path
    shell: Shell
    project: Path
    stack: ExitStack
    address: str = ADDRESS

    def follow(self, block: Block) -> None:
        if block.file and block.kind.endswith("diff"):
            self.patch(block.file, block.text)
        elif block.file:
            (self.project / block.file).write_text(block.text, "utf-8")
        else:
            for command, shown in block.commands():
                self.obey(command, shown)

    def patch(self, file: str, change: str) -> None:
        done = subprocess.run(
            ["git", "apply", "-"],
            cwd=self.project,
            input=f"--- a/{file}\n+++ b/{file}\n{change}",
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def obey(self, command: str, shown: str) -> None:
        if command == "make dev":
            self.address = self.stack.enter_context(running(self.project))
            log = (self.project.parent / "service.log").read_text("utf-8")
            for line in shown.replace(ADDRESS, self.address).splitlines():
                assert any(agrees(line_of_log, line) for line_of_log in log.splitlines()), log
            return
        self.until_it_agrees(command, shown)
        if command.startswith(PUBLISHED):
            lend_environment(self.project)

    def until_it_agrees(self, command: str, shown: str) -> None:
        """Run a command; again if it asks an API that may not have noticed the newest files yet."""
        scaffold = f"{sys.executable} -m cookiecutter {self.template}"
        typed = command.replace(PUBLISHED, scaffold).replace(ADDRESS, self.address)
        deadline = time.monotonic() + RELOAD_LIMIT
        while True:
            status, output = self.shell.run(typed)
            if status == 0 and (not shown or agrees(output, shown)):
                return
            is_final = "curl" not in command or time.monotonic() > deadline
            assert not is_final, f"$ {command}\n{output}\nstatus {status}, rather than\n{shown}"
            time.sleep(0.5)


def lend_environment(project: Path) -> None:
    """Let the project have our packages, as if its `make setup` had installed them."""
    lent = project / ".venv"
    lent.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (lent / name).symlink_to(Path(sys.prefix) / name)
    (lent / ".installed").touch()


@pytest.fixture
def tutorial(template: Path, tmp_path: Path) -> Iterator[Tutorial]:
    """Yield somebody in an empty folder, whose home is empty as well."""
    project = tmp_path / "lamp-shop"
    settings = environment(REPOSITORY / "{{cookiecutter.project_slug}}", 0)
    del settings["ENV_FILE"], settings["PORT"]
    variables = settings | {
        "HOME": str(tmp_path),
        "MYPY_CACHE_DIR": str(REPOSITORY / ".mypy_cache/tutorial"),
        "RUFF_CACHE_DIR": str(REPOSITORY / ".ruff_cache/tutorial"),
    }
    shell = Shell(tmp_path, variables)
    with ExitStack() as stack:
        stack.callback(shell.close)
        yield Tutorial(template, shell, project, stack)


def test_the_tutorial_does_what_it_says(tutorial: Tutorial) -> None:
    """From the first command to the last, in order, in one terminal."""
    for block in blocks():
        tutorial.follow(block)


def test_no_block_of_the_tutorial_is_left_out() -> None:
    """Each fence on the page is one that the other test understands."""
    fences = re.findall(r"^```.+$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(fences) == len(blocks())
    assert {"make dev", "make check"} <= {
        command for block in blocks() for command, _ in block.commands()
    }
