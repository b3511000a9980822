"""The documentation is built strictly, works offline, and says what is so."""

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache, partial
from html import unescape
from pathlib import Path

import pytest
import yaml

from scripts import tables
from tests.conftest import Bake
from tests.project import REPOSITORY, SERVICE, BakedProject
from tests.subprocesses import UNTOUCHED, attempt, run

DOCS = REPOSITORY / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
CODE_SPAN = re.compile(r"`([^`\n]+)`")
TYPED = re.compile(r"^\$ (.+)$", re.MULTILINE)
MAKE = re.compile(r"(?<![\w-])make (?:[A-Z]+=\S+ )*([a-z]+)")
CLI = re.compile(r"python cli\.py((?: [a-z][a-z-]*)*)(.*)")
VARIABLE = re.compile(r"(?<![\w./-])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+_?\*?|[A-Z]+(?==))")
SOURCE = re.compile(r"(?:src|tests|dev|docs|alembic|scripts|hooks|benchmarks)/[\w./-]+")
# Variables in capitals that are no settings: of make, of cli.py, of other programs; and constants.
NO_SETTINGS = {"ALL", "BROKER", "ENV_FILE", "ONLY", "PROMETHEUS_MULTIPROC_DIR", "PYTHON"}
UNLISTED = {"DRAMATIQ_BROKER"}  # there is no choice but in the template
COMMANDS = """\
import json
import cli
from src.tasks import cli as tasks  # cli.py loads it when it is called
from typer.main import get_command
def tree(command):
    options = [name for each in command.params for name in [*each.opts, *each.secondary_opts]]
    further = getattr(command, "commands", {})
    return {"options": options, "commands": {name: tree(each) for name, each in further.items()}}
found = tree(get_command(cli.app))
found["commands"]["tasks"] = tree(get_command(tasks.app))
print(json.dumps(found))
"""
FAULTY = """\
---
orphan: true
---
# Faults

[a](nowhere.md) [b](index.md#no-such-heading) [c](#not-here-either) [d](../no-such-file.py)
[e](../README.md#no-such-heading) [f](../../outside.md) ![g](images/no-such-picture.png)

```{include} ../NO-SUCH-FILE.md
```
"""
FAULTS = [
    "nowhere.md",
    "local id not found in doc 'index': 'no-such-heading'",
    "not-here-either",
    "../no-such-file.py: the repository has no such file",
    "../README.md#no-such-heading: that file has no heading #no-such-heading",
    "../../outside.md: that is not in the repository",
    "no-such-picture.png",
    "NO-SUCH-FILE.md",
]


def build(repository: Path, scratch: Path) -> "subprocess.CompletedProcess[str]":
    options: list[str | Path] = ["-E", "-b", "html", "-W", "--keep-going", "-n", "-q"]
    options += ["-d", scratch / "doctrees", "docs", scratch / "site"]
    return attempt("sphinx-build", *options, cwd=repository)


def spans() -> Iterator[tuple[Path, str]]:
    """Yield what stands in code on each page: in a line, or typed in a terminal."""
    for page in PAGES:
        text = page.read_text("utf-8")
        yield from ((page, span) for span in CODE_SPAN.findall(text) + TYPED.findall(text))


def path_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built site."""
    scratch = tmp_path_factory.mktemp("docs")
    done = build(REPOSITORY, scratch)
    assert done.returncode == 0, done.stdout
    return scratch / "site"


def test_the_site_is_built_strictly(site: Path) -> None:
    """Without a warning, and every page is in it."""
    assert {page.with_suffix(".html").relative_to(DOCS) for page in PAGES} <= {
        built.relative_to(site) for built in site.rglob("*.html")
    }


def test_a_fault_fails_the_build(own_template: Path, tmp_path: Path) -> None:
    """Whatever is not there: a page, a heading, a file, a picture; each fault is named."""
    (own_template / "docs/faults.md").write_text(FAULTY, "utf-8")
    done = build(own_template, tmp_path)
    assert done.returncode != 0
    assert [fault for fault in FAULTS if fault not in done.stdout] == []


def test_the_site_needs_no_internet(site: Path) -> None:
    """No page, style sheet or picture fetches anything from elsewhere."""
    fetched = re.compile(r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:\w+:)?//""")
    linked = re.compile(r"""<link(?![^>]+canonical)[^>]+href=["']?(?:\w+:)?//""")
    loaded = re.compile(r"""(?:url\(|@import |href=)["']?(?:\w+:)?//""")
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not fetched.search(text), page
        assert not linked.search(text), page
    for file in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        assert not loaded.search(file.read_text("utf-8")), file


def test_what_is_generated_is_fresh(own_template: Path) -> None:
    """`--check` fails by name for each file whose source has changed, and writing mends it."""
    tables_of = partial(attempt, "python", "-m", "scripts.tables", cwd=own_template)
    assert tables_of("--check").returncode == 0
    edit(own_template / "cookiecutter.json", '"Project name"', '"Its name"')
    edit(own_template / SERVICE / ".env.example", "Connections that", "How many connections")
    checked = tables_of("--check")
    assert checked.returncode == 1, checked.stdout
    assert [file for file in tables.GENERATED if file not in checked.stdout] == []
    assert (tables_of().returncode, tables_of("--check").returncode) == (0, 0)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


def test_every_question_and_answer_is_described() -> None:
    """A page for each choice, with a row of a table for each answer; a heading for free text."""
    for question in tables.names():
        name, _, heading = tables.page_of(question).partition("#")
        page = (DOCS / "options" / name).read_text("utf-8")
        assert not heading or f"\n## {heading}\n" in page, question
        rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("|")]
        for answer in tables.choices_of(question):
            assert any(f"`{answer}`" in cell for cell in rows), (question, answer)


def test_the_picture_of_the_prompts_is_of_today() -> None:
    """It shows each question; `make pictures` makes it again."""
    picture = unescape((DOCS / "images/prompts.svg").read_text("utf-8")).replace("\xa0", " ")
    for number, question in enumerate(tables.names(), 1):
        assert f"{number}/{len(tables.names())}" in picture
        assert tables.prompt_of(question) in picture


@cache
def targets() -> set[str]:
    """Return the targets of make, the template's and a service's."""
    makefiles = [REPOSITORY / "Makefile", REPOSITORY / SERVICE / "Makefile"]
    texts = (makefile.read_text("utf-8") for makefile in makefiles)
    return {target for text in texts for target in re.findall(r"^([a-z]+):", text, re.MULTILINE)}


def test_make_targets_that_are_named_exist() -> None:
    named = {(path_of(page), target) for page, span in spans() for target in MAKE.findall(span)}
    assert {(page, target) for page, target in named if target not in targets()} == set()


def test_commands_that_are_named_exist() -> None:
    """And have the options that are named with them."""
    commands = json.loads(run("python", "-c", COMMANDS, cwd=REPOSITORY / SERVICE, env=UNTOUCHED))
    calls = [(page, *call) for page, span in spans() for call in CLI.findall(span)]
    assert len(calls) > len(commands)
    for page, words, rest in calls:
        command = commands
        for word in words.split():
            assert word in command["commands"], (path_of(page), words)
            command = command["commands"][word]
        options = set(re.findall(r"--[a-z-]+", rest)) - {"--help"}
        assert options <= set(command["options"]), (path_of(page), words)


def settings() -> set[str]:
    example = (REPOSITORY / SERVICE / ".env.example").read_text("utf-8")
    return set(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=", example, re.MULTILINE))


def test_every_setting_is_in_the_example() -> None:
    """`.env.example`, from which the page of settings is made, names each field of `Settings`."""
    code = (REPOSITORY / SERVICE / "src/core/config.py").read_text("utf-8")
    fields = set(re.findall(r"^    ([A-Z][A-Z_]+): ", code, re.MULTILINE))
    assert fields
    assert fields - settings() == UNLISTED


def test_settings_that_are_named_exist() -> None:
    """`REDIS_*` stands for all that begin so."""
    known = settings() | UNLISTED | NO_SETTINGS
    named = {(path_of(page), name) for page, span in spans() for name in VARIABLE.findall(span)}
    for page, name in named:
        beginning = name.removesuffix("*")
        like = {each for each in known if each.startswith(beginning)} if "*" in name else {name}
        assert like, (page, name)
        assert like <= known, (page, name)


def test_files_that_are_named_exist() -> None:
    """In the repository, or in a service with every feature; the tutorial makes its own."""
    folders = (REPOSITORY, REPOSITORY / SERVICE)
    for page, span in spans():
        for name in SOURCE.findall(span) if page.name != "tutorial.md" else []:
            assert any((folder / name).exists() for folder in folders), (path_of(page), name)


# Of the answers that bring something, for each question the others as bare as can be.
BARE = {"cache_backend": "none", "task_queue": "none", "scheduler": "no"}


@pytest.mark.parametrize("question", BARE)
def test_each_answer_brings_what_its_page_says(bake: Bake, question: str) -> None:
    """Files, settings, packages and services, in the columns that say yes and in no other."""
    rows = rows_of(DOCS / f"options/{question}.md")
    answers = [cell.strip("`") for cell in rows[0][1:]]
    assert answers == tables.choices_of(question)
    for column, answer in enumerate(answers, 1):
        project = bake(**BARE | {question: answer})
        said = {thing: row[column] == "yes" for row in rows for thing in things(row)}
        assert {thing: has(project, *thing) for thing in said} == said, answer


def rows_of(page: Path) -> list[list[str]]:
    """Return the cells of the table of what each answer brings."""
    chapter = page.read_text("utf-8").partition("## What each answer brings")[2]
    table = chapter.strip().partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [row for row in cells if not row[0].startswith("---")]


def things(row: list[str]) -> list[tuple[str, str]]:
    """Return what can be looked for: a file in the project, or a name in one of its files."""
    found = []
    for part in row[0].split(";"):
        names = CODE_SPAN.findall(part)
        if names and names[0].startswith("requirements"):
            found += [(names[0], name) for name in names[1:]]
        elif part.startswith("Compose: the service"):
            found += [("docker-compose.yml", names[0])]
        else:
            variables = set(filter(VARIABLE.fullmatch, names)) - UNLISTED
            found += [(".env.example", name) for name in variables]
            found += [("", name) for name in filter(SOURCE.fullmatch, names)]
    return found


def has(project: BakedProject, where: str, name: str) -> bool:
    if not where:
        return project.has_file(name)
    text = project.read_file(where)
    if where.endswith(".yml"):
        return name in yaml.safe_load(text)["services"]
    end = r"\w+" if name.endswith("*") else r"(?![\w-])"
    return re.search(rf"^(# )?{name.rstrip('*')}{end}", text, re.MULTILINE) is not None
