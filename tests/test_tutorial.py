"""The tutorial of the documentation works: its commands print what it shows."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from scripts.demo import environment
from tests.project import REPOSITORY, SERVICE
from tests.running import lend_environment, running

PAGE = REPOSITORY / "docs/tutorial.md"
BLOCK = re.compile(
    r"^```(?P<kind>bash|text|\{code-block\} python)\n"
    r"(?::caption: (?P<file>\S+)\n\n)?(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
# The test scaffolds from the template under test and on a free port.
PUBLISHED = re.compile(r"uvx cookiecutter gh:\S+")
ADDRESS = "http://127.0.0.1:8000"
END = "=== exit status:"
VARYING = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass
class Block:
    kind: str
    file: str | None
    text: str


def blocks() -> list[Block]:
    return [
        Block(*match.group("kind", "file", "text"))
        for match in BLOCK.finditer(PAGE.read_text("utf-8"))
    ]


class Shell:
    """One terminal: its variables and its working folder remain between commands."""

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

    def run(self, commands: str) -> tuple[int, str]:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{{ {commands}\n}} </dev/null\nprintf '\\n{END} %s\\n' $?\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.startswith(END):
                return int(line.removeprefix(END)), "".join(lines).removesuffix("\n")
            lines.append(line)
        raise AssertionError(f"{commands} closed the terminal:\n{''.join(lines)}")

    def close(self) -> None:
        self._bash.communicate("exit\n", timeout=10)


def agrees(output: str, shown: str) -> bool:
    """Compare, except for IDs; `...` matches any text."""
    parts = VARYING.sub("<id>", shown.strip()).split("...")
    pattern = ".*".join(re.escape(part) for part in parts)
    return re.fullmatch(pattern, VARYING.sub("<id>", output.strip()), re.DOTALL) is not None


@dataclass
class Reader:
    """Follows the page, with the packages of the template's environment."""

    template: Path
    shell: Shell
    project: Path
    stack: ExitStack
    address: str = ADDRESS

    def follow(self, block: Block, shown: str) -> None:
        if block.file:
            (self.project / block.file).write_text(block.text, "utf-8")
        elif block.text == "make dev\n":
            self.start(shown)
        elif block.kind == "bash":
            self.run(block.text, shown)

    def start(self, shown: str) -> None:
        self.address = self.stack.enter_context(running(self.project))
        log = (self.project.parent / "service.log").read_text("utf-8")
        for line in shown.replace(ADDRESS, self.address).splitlines():
            assert any(agrees(logged, line) for logged in log.splitlines()), log

    def run(self, commands: str, shown: str) -> None:
        scaffold = f"{sys.executable} -m cookiecutter {self.template}"
        typed = PUBLISHED.sub(scaffold, commands).replace(ADDRESS, self.address)
        for command in typed.replace("\\\n", "").splitlines():
            status, output = self.shell.run(command)
            assert status == 0, f"{command}\n{output}"
        if shown:
            assert agrees(output, shown), f"{commands}\n{output}\nrather than\n{shown}"
        if PUBLISHED.search(commands):
            lend_environment(self.project)


@pytest.fixture
def reader(template: Path, tmp_path: Path) -> Iterator[Reader]:
    """Yield a reader whose working folder and home are empty."""
    settings = environment(REPOSITORY / SERVICE, 0)
    del settings["ENV_FILE"], settings["PORT"]
    variables = settings | {
        "HOME": str(tmp_path),
        "MYPY_CACHE_DIR": str(REPOSITORY / ".mypy_cache/tutorial"),
        "RUFF_CACHE_DIR": str(REPOSITORY / ".ruff_cache/tutorial"),
    }
    shell = Shell(tmp_path, variables)
    with ExitStack() as stack:
        stack.callback(shell.close)
        yield Reader(template, shell, tmp_path / "lamp-shop", stack)


def test_commands_print_what_the_tutorial_shows(reader: Reader) -> None:
    """All blocks run in order, in one terminal."""
    for block, following in pairwise([*blocks(), Block("end", None, "")]):
        reader.follow(block, following.text if following.kind == "text" else "")


def test_every_block_of_the_tutorial_is_run() -> None:
    fences = re.findall(r"^```.+$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(fences) == len(blocks())
    assert {"make dev\n", "make check\n"} <= {block.text for block in blocks()}
