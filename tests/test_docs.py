"""The documentation is built strictly, works offline, and says what is so."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from scripts import tables
from tests.conftest import Bake
from tests.project import REPOSITORY, SERVICE, BakedProject

DOCS = REPOSITORY / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
CODE_SPAN = re.compile(r"`([^`\n]+)`")
TYPED = re.compile(r"^\$ (.+)$", re.MULTILINE)
MAKE = re.compile(r"(?<![\w-])make (?:[A-Z]+=\S+ )*([a-z]+)")
CLI = re.compile(r"python cli\.py((?: [a-z][a-z-]*)*)(.*)")
VARIABLE = re.compile(r"(?<![\w./-])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+_?\*?|[A-Z]+(?==))")
SOURCE = re.compile(r"(?:src|tests|dev|docs|alembic|scripts|hooks|benchmarks)/[\w./-]+")
# Variables in capitals that are no settings: of make, of cli.py, of other programs; and constants.
NO_SETTINGS = {"BROKER", "ENV_FILE", "ONLY", "PROMETHEUS_MULTIPROC_DIR", "PYTHON"}
COMMANDS = """\
import json
import cli
from typer.main import get_command
def tree(command):
    options = [name for each in command.params for name in [*each.opts, *each.secondary_opts]]
    further = getattr(command, "commands", {})
    return {"options": options, "commands": {name: tree(each) for name, each in further.items()}}
print(json.dumps(tree(get_command(cli.app))))
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


def python(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", *arguments],
        cwd=folder,
        env=os.environ | {"ENV_FILE": ""},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def build(repository: Path, scratch: Path) -> subprocess.CompletedProcess[str]:
    options: list[str | Path] = ["-E", "-b", "html", "-W", "--keep-going", "-n", "-q"]
    options += ["-d", scratch / "doctrees", "docs", scratch / "site"]
    return python("-m", "sphinx", *options, folder=repository)


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
    assert done.returncode == 0, done.stdout + done.stderr
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
    assert [fault for fault in FAULTS if fault not in done.stderr] == []


class _Resources(HTMLParser):
    """Collects what a browser fetches for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in {"script", "img", "iframe", "source"}:
            self.urls += [given.get("src") or ""]
        elif tag == "link" and given.get("rel") != "canonical":
            self.urls += [given.get("href") or ""]


def test_the_site_needs_no_internet(site: Path) -> None:
    """No page fetches anything from elsewhere, and neither does a style sheet or a picture."""
    for page in site.rglob("*.html"):
        parser = _Resources()
        parser.feed(page.read_text("utf-8"))
        assert [url for url in parser.urls if re.match(r"(\w+:)?//", url)] == [], page
    for file in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        text = file.read_text("utf-8")
        assert not re.search(r"""(url\(|@import |href=)["']?(\w+:)?//""", text), file


def test_what_is_generated_is_fresh() -> None:
    """Tables and picture are what `scripts/tables.py` makes of their sources now."""
    done = python("-m", "scripts.tables", "--check", folder=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_stale_is_named(own_template: Path) -> None:
    """`--check` fails by name for each source that has changed, and writing mends all of it."""
    edit(own_template / "cookiecutter.json", '"Project name"', '"Its name"')
    edit(own_template / SERVICE / ".env.example", "Days that it is remembered", "Days of memory")
    layers = '["src.api", "src.services", "src.repositories", "src.db"]'
    fewer = '["src.api", "src.services", "src.db"]'
    edit(own_template / SERVICE / "pyproject.toml", layers, fewer)
    command = ("-m", "scripts.tables")

    checked = python(*command, "--check", folder=own_template)
    written = python(*command, folder=own_template)
    checked_again = python(*command, "--check", folder=own_template)

    assert checked.returncode == 1, checked.stderr
    assert [file for file in tables.GENERATED if file not in checked.stdout] == []
    assert (written.returncode, checked_again.returncode) == (0, 0)


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
        for answer in tables.offered(question):
            assert any(f"`{answer}`" in cell for cell in rows), (question, answer)


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
    done = python("-c", COMMANDS, folder=REPOSITORY / SERVICE)
    assert done.returncode == 0, done.stderr
    commands = json.loads(done.stdout)
    calls = [(page, *call) for page, span in spans() for call in CLI.findall(span)]
    assert len(calls) > len(commands)
    for page, words, rest in calls:
        command = commands
        for word in words.split():
            assert word in command["commands"], (path_of(page), words)
            command = command["commands"][word]
        options = set(re.findall(r"--[a-z-]+", rest)) - {"--help"}
        assert options <= set(command["options"]), (path_of(page), words)


def test_settings_that_are_named_exist() -> None:
    """`REDIS_*` stands for all that begin so."""
    settings = {variable.name for variable in [*tables.described(), *tables.UNLISTED]}
    known = settings | NO_SETTINGS
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
    assert answers == tables.offered(question)
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
            settings = set(filter(VARIABLE.fullmatch, names))
            unlisted = {variable.name for variable in tables.UNLISTED}
            found += [(".env.example", name) for name in settings - unlisted]
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
