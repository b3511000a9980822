"""Follow AGENTS.md: its commands, its paths, and its steps to a new resource."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import httpx

from tests.project import BakedProject
from tests.running import free_port, lend_environment, running
from tests.subprocesses import run

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!\w+:)([^)#]+)")
STEP = re.compile(r"^\d+\. `([^`]+)`", re.MULTILINE)
PROGRAM = re.compile(r"(make|python|alembic|pytest|uv|uvx|git|docker|cookiecutter|\S*bin/\S+)(?= )")
PATH = re.compile(r"[\w.<>{}/-]*(/|\.(md|py|toml|txt|json|yml|example))[\w.<>{}/-]*")
# The resource of docs/api-resource.md, whose text the steps refer to.
ROUTER = Path("src/api/v1/router.py")
FILE = re.compile(
    r"`((?:src|tests)/[\w/]+\.py)`[^\n]*\n\n```python\n(.*?)^```", re.DOTALL | re.MULTILINE
)
NAMES = {"<name>": "note", "<names>": "notes", "order_line": "note"}


def named(text: str) -> str:
    for name, value in NAMES.items():
        text = text.replace(name, value)
    return text


@dataclass(frozen=True)
class AgentsFile:
    text: str

    @property
    def commands(self) -> list[str]:
        """Return each command of the blocks and of the text once, without its comment."""
        lines = [line for kind, block in self.blocks for line in block.splitlines() if kind]
        typed = [line.partition(" # ")[0].strip() for line in lines]
        return [*dict.fromkeys([*typed, *filter(PROGRAM.match, self.spans)])]

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """Return the blocks with commands; those with another kind of text have an empty kind."""
        return [("" if kind == "text" else kind, text) for kind, text in BLOCK.findall(self.text)]

    @property
    def spans(self) -> list[str]:
        return CODE.findall(BLOCK.sub("", self.text))

    @property
    def steps(self) -> list[str]:
        """Return the files to write and the commands to run, for the resource `note`."""
        return [named(step) for step in STEP.findall(self.text)]

    @property
    def paths(self) -> set[str]:
        """Return the paths in the text, in links and in commands."""
        words = [word.partition("::")[0] for each in self.commands for word in each.split()]
        words += [span for span in self.spans if span not in self.commands]
        found = {word for word in words if PATH.fullmatch(word) and "bin/" not in word}
        return found | set(LINK.findall(self.text))


def missing_paths(folder: Path, paths: set[str]) -> set[str]:
    """Return the paths that do not exist. For `<name>.py`, its folder must exist."""
    real = (path.rpartition("/")[0] if "<" in path else path for path in paths)
    return {path for path in real if not (folder / unquote(path)).exists()}


def add_resource(project: BakedProject) -> None:
    """Take the steps of AGENTS.md to a new resource, with the text of docs/api-resource.md."""
    texts = dict(FILE.findall(project.read_file("docs/api-resource.md")))
    for step in AgentsFile(project.read_file("AGENTS.md")).steps:
        if step.startswith("make "):
            run("bash", "-ec", step, cwd=project.path)
        elif Path(step) == ROUTER:
            register(project.path / ROUTER, "notes")
        else:
            (project.path / step).write_text(texts.pop(step), "utf-8")
    assert texts == {}


def register(router: Path, name: str) -> None:
    router.write_text(registered(router.read_text("utf-8"), name), "utf-8")


def registered(source: str, name: str) -> str:
    source = source.replace("    health,\n", f"    health,\n    {name},\n")
    return f"{source}router.include_router({name}.router)\n"


def follow(project: BakedProject, env: dict[str, str]) -> set[str]:
    """Run the commands of AGENTS.md around a new resource; return those that are left to run.

    The last one, which says when a change is done, runs without its target `test`.
    """
    lend_environment(project.path)
    agents_file = AgentsFile(project.read_file("AGENTS.md"))
    done = agents_file.blocks[-1][1].strip()
    commands = set(agents_file.commands) - {done}
    for command in ("make setup", *(each for each in commands if "bin/" in each)):
        used = {"PORT": str(free_port())} if "doctor" in command else env
        run("bash", "-ec", command, cwd=project.path, env=used)
        commands.remove(command)
    add_resource(project)
    with running(project.path, "make", "dev") as address:
        run("bash", "-ec", "make migrate", cwd=project.path)
        body = {"text": "Buy bulbs"}
        created = httpx.post(f"{address}/api/v1/notes/", json=body, trust_env=False)
        assert created.status_code == 201, created.text
    run("bash", "-ec", done.removesuffix(" test"), cwd=project.path, env=env)
    finished = {*done.split()[1:-1], "dev", "migrate", "migration"}
    return {command for command in commands if command.split()[1] not in finished}
