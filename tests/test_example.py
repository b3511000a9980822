"""The page `docs/example.md` of the service removes the example, followed word for word."""

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Bake
from tests.project import BakedProject, texts_under
from tests.servers import serving
from tests.subprocesses import run
from tests.test_variants import CHECKS, WITHOUT_FUZZER
from tests.variants import ALL

PAGE = Path("docs/example.md")
COMMANDS = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
CHANGE = re.compile(r"`([\w./-]+)`[^\n]*:\n\n```(diff|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
REMOVED = re.compile(r"^-(.*)$", re.MULTILINE)
ADDED = re.compile(r"^\+(.*)$", re.MULTILINE)
# Each with and without a cache, a queue and a scheduler: no other answer touches the page.
WITH_EXAMPLE = [
    answers
    for answers in ALL
    if answers["example"] == "yes"
    and answers["cache_backend"] in {"redis", "none"}
    and answers["task_queue"] in {"redis", "none"}
]


def follow(project: BakedProject, text: str) -> None:
    """Run the commands of the text, and change the files that it names."""
    for commands in COMMANDS.findall(text):
        subprocess.run(["bash", "-ec", commands], cwd=project.path, check=True)
    for name, kind, content in CHANGE.findall(text):
        path = project.path / name
        if kind == "python":
            path.write_text(content, "utf-8")
            continue
        source = path.read_text("utf-8")
        for part in content.split("@@\n"):
            removed, added = (
                "".join(f"{line}\n" for line in kind.findall(part)) for kind in (REMOVED, ADDED)
            )
            assert source.count(removed) == 1, f"{name}: {removed}"
            source = source.replace(removed, added)
        path.write_text(source, "utf-8")


def parts_of_the_page(project: BakedProject) -> tuple[str, str]:
    """Return what the page says of the code, and of migrations that no database needs."""
    text = project.read_file(PAGE).partition("## Remove the example")[2]
    code, _, tables = text.partition("Then decide on the tables.")
    return code, tables.partition("**Where a database has them,**")[0]


@pytest.mark.parametrize("answers", WITH_EXAMPLE, ids=lambda answers: "-".join(answers.values()))
def test_nothing_of_the_example_stays(bake: Bake, render: Bake, answers: dict[str, str]) -> None:
    """The project then equals one that was made without it."""
    project = bake(**answers)
    for part in parts_of_the_page(project):
        follow(project, part)
    without = render(**answers | {"example": "no"})
    assert texts_under(project.path) == texts_under(without.path)


def test_a_database_that_has_the_tables_loses_them(bake: Bake) -> None:
    """A migration that Alembic writes drops them; checks and tests pass, migrations included."""
    project = bake()
    with serving("postgres") as server:
        url = urlsplit(server)._replace(path="/with_example").geturl()
        database = {"DATABASE_URL": url}
        run("python", "cli.py", "db", "init", cwd=project.path, env=database)
        code, _ = parts_of_the_page(project)
        follow(project, code)
        for command in ("revision --autogenerate -m remove", "upgrade head", "check"):
            run("alembic", *command.split(), cwd=project.path, env=database)
        for check in CHECKS.values():
            run(*check, cwd=project.path)
        env = WITHOUT_FUZZER | {"DATABASE_URL": server}
        run("pytest", "--quiet", "--numprocesses", "2", cwd=project.path, env=env)
