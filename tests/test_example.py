"""The commands of the service's page `docs/example.md` remove the example."""

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.agents import ROUTER, register, registered
from tests.conftest import Bake
from tests.project import BakedProject, texts_under
from tests.running import LENT
from tests.servers import serving
from tests.subprocesses import UNTOUCHED, run, run_tests
from tests.test_variants import LINTERS, WITHOUT_FUZZER
from tests.variants import ALL

PAGE = Path("docs/example.md")
COMMANDS = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
CONTENT = re.compile(r"`([\w./-]+)`[^\n]*:\n\n```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Each with and without a cache, a queue and a scheduler: no other answer touches the page.
WITH_EXAMPLE = [
    answers
    for answers in ALL
    if answers["example"] == "yes"
    and answers["cache_backend"] in {"redis", "none"}
    and answers["task_queue"] in {"redis", "none"}
]


# Files of a user with names like those of the example.
MINE = [
    Path("src/domain/line_item.py"),
    Path("src/services/item_price.py"),
    Path("src/api/v1/endpoints/item_prices.py"),
    Path("tests/test_api/test_line_items.py"),
]


def follow(project: BakedProject, text: str) -> None:
    """Run the commands of the text, and write the files that it shows."""
    for commands in COMMANDS.findall(text):
        subprocess.run(["bash", "-ec", commands], cwd=project.path, check=True)
    for name, content in CONTENT.findall(text):
        (project.path / name).write_text(content, "utf-8")


def parts_of_the_page(project: BakedProject) -> tuple[str, str]:
    """Return what removes the code, and what removes the migrations."""
    text = project.read_file(PAGE).partition("## Remove the example")[2]
    code, _, tables = text.partition("## Drop its tables")
    return code, tables


@pytest.mark.parametrize("answers", WITH_EXAMPLE, ids=lambda answers: "-".join(answers.values()))
def test_removed_example_leaves_nothing(bake: Bake, render: Bake, answers: dict[str, str]) -> None:
    """The project then equals one that was generated without it, with the user's own files."""
    project = bake(**answers)
    for name in MINE:
        (project.path / name).write_text("", "utf-8")
    register(project.path / ROUTER, "item_prices")
    for part in parts_of_the_page(project):
        follow(project, part)
    expected = texts_under(render(**answers | {"example": "no"}).path) | dict.fromkeys(MINE, "")
    expected[ROUTER] = registered(expected[ROUTER], "item_prices")
    assert texts_under(project.path) == expected


def test_migrations_of_the_user_follow_the_others(bake: Bake) -> None:
    """Also without the example's migrations, of which the last was the head."""
    project = bake(task_queue="none", scheduler="no")
    # Without bytecode: the commands change the file within a second, and keep its size.
    run("alembic", "revision", "--message", "create item price", cwd=project.path, env=UNTOUCHED)
    _, tables = parts_of_the_page(project)
    follow(project, tables)
    history = run("alembic", "history", cwd=project.path).splitlines()
    parents = [line.partition(" -> ")[0] for line in history]
    assert parents == ["7d2c81f5e0b9", "5c0e9d1f7a34", "<base>"]


def test_alembic_drops_the_tables(bake: Bake) -> None:
    """The new migration passes the linters and the tests of migrations.

    Nothing else differs from a project that was generated without the example.
    """
    project = bake()
    with serving("postgres") as server:
        url = urlsplit(server)._replace(path="/with_example").geturl()
        database = {"DATABASE_URL": url}
        run("python", "cli.py", "db", "init", cwd=project.path, env=database)
        code, _ = parts_of_the_page(project)
        follow(project, code)
        run("make", "migration", "m=remove", *LENT, cwd=project.path, env=database)
        for command in ("upgrade head", "check"):
            run("alembic", *command.split(), cwd=project.path, env=database)
        for linter in LINTERS.values():
            run(*linter, cwd=project.path)
        env = WITHOUT_FUZZER | {"DATABASE_URL": server}
        run_tests("tests/test_models", cwd=project.path, env=env)
