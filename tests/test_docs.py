"""The documentation builds without warnings, works offline, and names what exists."""

import json
import re
import shutil
import subprocess
from functools import cache, partial
from html import unescape
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from sphinx.search.en import SearchEnglish

from scripts import tables
from tests.conftest import Bake
from tests.project import REPOSITORY, SERVICE, BakedProject
from tests.subprocesses import UNTOUCHED, attempt, run

DOCS = REPOSITORY / "docs"
CODE_SPAN = re.compile(r"`([^`\n]+)`")
COMMANDS_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MAKE = re.compile(r"(?<![\w-])make (?:[A-Z]+=\S+ )*([a-z]+(?:[.-][a-z]+)*)")
CLI = re.compile(r"python cli\.py((?: [a-z][a-z-]*)*)(.*)")
VARIABLE = re.compile(r"(?<![\w./$-])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+_?\*?|[A-Z]+(?==))")
SOURCE = re.compile(r"(?:src|tests|dev|docs|alembic|scripts|hooks|benchmarks)/[\w./-]++(?![<*{])")
# Files that readers are told to create.
CREATED = re.compile(
    r"notes?\b|attachments\b|order_line|invoice|\btag\b|_tag\b|/v2/|test_lamps|kept_tables|\.bak$"
    r"|/welcome\.|oauth2-redirect$"  # a template of a mail, a URL
)
NAME = re.compile(r"[A-Z][A-Z0-9_]+")
READ_FROM = {".py", ".yml"}
# Variables of other packages, and IDs that a provider assigns.
FOREIGN = re.compile(
    r"(FASTAPI_)?OTEL_\w+|UVICORN_\w+|WEB_CONCURRENCY|COMPOSE_FILE|HTTPS_PROXY|[A-Z]+_ID"
)
UNLISTED = {"DRAMATIQ_BROKER"}  # a project has one broker; only the template can select
COMMANDS = """\
import json
import cli
from src.auth import users_cli as users  # cli.py loads these two when they are called
from src.tasks import cli as tasks
from typer.main import get_command
def tree(command):
    options = [name for each in command.params for name in [*each.opts, *each.secondary_opts]]
    further = getattr(command, "commands", {})
    return {"options": options, "commands": {name: tree(each) for name, each in further.items()}}
found = tree(get_command(cli.app))
found["commands"] |= {"tasks": tree(get_command(tasks.app)), "users": tree(get_command(users.app))}
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
    "src/gone.py: the repository has no such file",
    "docs/gone.md",
]


def build(repository: Path, scratch: Path) -> "subprocess.CompletedProcess[str]":
    options: list[str | Path] = ["-E", "-b", "html", "-W", "--keep-going", "-n", "-q"]
    options += ["-d", scratch / "doctrees", "docs", scratch / "site"]
    return attempt("sphinx-build", *options, cwd=repository)


class Site(NamedTuple):
    html: Path
    sources: Path

    def pages(self) -> list[Path]:
        """Return the source of each page, the rendered manuals included."""
        return sorted(self.sources.rglob("*.md"))

    def code(self) -> list[tuple[str, str]]:
        """Return inline code and commands of the pages, README.md and CONTRIBUTING.md."""
        found = []
        root = self.sources.parent
        for page in [root / "README.md", root / "CONTRIBUTING.md", *self.pages()]:
            text = page.read_text("utf-8")
            commands = "\n".join(COMMANDS_BLOCK.findall(text)).replace("\\\n", " ").splitlines()
            spans = CODE_SPAN.findall(text) + commands
            found += [(page.relative_to(root).as_posix(), span) for span in spans]
        return found


@pytest.fixture(scope="module")
def site(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Build the site from a copy, because a build writes the manuals into the `docs` folder."""
    scratch = tmp_path_factory.mktemp("docs")
    repository = shutil.copytree(template, scratch / "fastapi-ignite")
    done = build(repository, scratch)
    assert done.returncode == 0, done.stdout
    return Site(scratch / "site", repository / "docs")


def test_repository_address_comes_from_the_readme(site: Site) -> None:
    """A maintainer changes it in one place; other sources have a placeholder."""
    [address] = set(re.findall(r"\bgh:([\w./-]+)", (REPOSITORY / "README.md").read_text("utf-8")))
    sources = [page.read_text("utf-8") for page in site.pages()]
    assert not any(f"{kind}{address}" in text for text in sources for kind in ("gh:", ".com/"))
    assert f"gh:{address}" in (site.html / "index.html").read_text("utf-8")
    assert f"https://github.com/{address}" in (site.html / "updating.html").read_text("utf-8")


def test_build_has_no_warnings_and_contains_every_page(site: Site) -> None:
    built = {page.relative_to(site.html) for page in site.html.rglob("*.html")}
    pages = {page.with_suffix(".html").relative_to(site.sources) for page in site.pages()}
    assert pages <= built
    assert {Path("index.html"), Path("service/DEVELOPER-GUIDE.html")} <= pages


def test_missing_targets_fail_the_build(own_template: Path, tmp_path: Path) -> None:
    """A missing page, heading, file or picture is reported, in a page and in a rendered manual."""
    (own_template / "docs/faults.md").write_text(FAULTY, "utf-8")
    readme = own_template / SERVICE / "README.md"
    readme.write_text(readme.read_text("utf-8") + "\n[x](src/gone.py) [y](docs/gone.md)\n", "utf-8")
    done = build(own_template, tmp_path)
    assert done.returncode != 0
    assert [fault for fault in FAULTS if fault not in done.stdout] == []


def test_links_between_manuals_stay_on_the_site(site: Site) -> None:
    """Links to source files lead to the repository's host."""
    assert 'href="docs/caching.html' in (site.html / "service/README.html").read_text("utf-8")
    assert 'href="service/docs/caching.html' in (site.html / "what-you-get.html").read_text("utf-8")
    manuals = [page.read_text("utf-8") for page in (site.html / "service").rglob("*.html")]
    hosted = "/blob/main/%7B%7Bcookiecutter.project_slug%7D%7D/"
    assert any(hosted in manual for manual in manuals)


def test_diagrams_are_drawn_for_both_color_schemes(site: Site) -> None:
    pages = [page.read_text("utf-8") for page in site.html.rglob("*.html")]
    for scheme in ("light", "dark"):
        assert any(f'<img class="mermaid {scheme}"' in page for page in pages)


def test_commands_have_no_prompt(site: Site) -> None:
    """Readers copy commands. Output is in a separate block."""
    prompt = re.compile(r"^\$ ", re.MULTILINE)
    assert [page for page in site.pages() if prompt.search(page.read_text("utf-8"))] == []


def test_only_the_readme_has_the_address(site: Site) -> None:
    """Other pages write ORG, which the site replaces."""
    [address] = set(re.findall(r"\bgh:([\w./-]+)", (REPOSITORY / "README.md").read_text("utf-8")))
    pages = [*DOCS.glob("*.md"), REPOSITORY / "CONTRIBUTING.md"]
    assert [page.name for page in pages if address in page.read_text("utf-8")] == []
    tutorial = (site.html / "tutorial.html").read_text("utf-8")
    assert "ORG/fastapi-ignite" not in tutorial
    assert address in tutorial


def test_site_needs_no_internet(site: Site) -> None:
    """No page, style sheet or picture loads anything from another host."""
    fetched = re.compile(r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:\w+:)?//""")
    linked = re.compile(r"""<link(?![^>]+canonical)[^>]+href=["']?(?:\w+:)?//""")
    loaded = re.compile(r"""(?:url\(|@import |href=)["']?(?:\w+:)?//""")
    for page in site.html.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not fetched.search(text), page
        assert not linked.search(text), page
        assert "<iconify-icon" not in text, f"{page}: the theme's script would fetch this icon"
    for file in [*site.html.rglob("*.css"), *site.html.rglob("*.svg")]:
        assert not loaded.search(file.read_text("utf-8")), file


@pytest.mark.parametrize("words", ["authentication", "many to many", "dead letter"])
def test_search_finds(site: Site, words: str) -> None:
    """The search index has a page with the stem of each word, in its text or in a title."""
    index = (site.html / "searchindex.js").read_text("utf-8")
    index = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))
    stem = SearchEnglish({}).stem
    pages = []
    for word in words.split():
        if word != "to":  # a stop word
            found = [index[terms].get(stem(word), []) for terms in ("terms", "titleterms")]
            pages.append(
                {page for each in found for page in (each if isinstance(each, list) else [each])}
            )
    assert set.intersection(*pages)


def test_stale_table_of_questions_is_reported(own_template: Path) -> None:
    """`--check` fails, and a run without it updates the README."""
    table = partial(attempt, "python", "-m", "scripts.tables", cwd=own_template)
    assert table("--check").returncode == 0
    asked = own_template / "cookiecutter.json"
    asked.write_text(asked.read_text("utf-8").replace('"Project name"', '"Its name"'), "utf-8")
    checked = table("--check")
    assert checked.returncode == 1
    assert "README.md" in checked.stdout
    assert (table().returncode, table("--check").returncode) == (0, 0)


def section_of(question: str) -> str:
    text = (DOCS / "questions.md").read_text("utf-8")
    return re.split(rf"^## {question}$", text, flags=re.MULTILINE)[1].partition("\n## ")[0]


def test_every_question_and_answer_is_described() -> None:
    for question in tables.names():
        section = section_of(question)
        described = CODE_SPAN.findall(section)
        for answer in tables.choices_of(question):
            assert answer in described, (question, answer)
        if choices := tables.choices_of(question):
            assert f"**`{choices[0]}`**" in section, question


def test_picture_of_the_prompts_is_current() -> None:
    """It shows each question. `make pictures` updates it."""
    picture = unescape((DOCS / "images/prompts.svg").read_text("utf-8")).replace("\xa0", " ")
    for number, question in enumerate(tables.names(), 1):
        assert f"{number}/{len(tables.names())}" in picture
        assert tables.prompt_of(question) in picture


@cache
def targets() -> set[str]:
    """Return the make targets of the template and of a service."""
    makefiles = [REPOSITORY / "Makefile", REPOSITORY / SERVICE / "Makefile"]
    texts = (makefile.read_text("utf-8") for makefile in makefiles)
    return {target for text in texts for target in re.findall(r"^([a-z.-]+):", text, re.MULTILINE)}


def test_named_make_targets_exist(site: Site) -> None:
    named = {(page, target) for page, span in site.code() for target in MAKE.findall(span)}
    assert named
    assert {(page, target) for page, target in named if target not in targets()} == set()


def test_named_commands_and_options_exist(site: Site) -> None:
    commands = json.loads(run("python", "-c", COMMANDS, cwd=REPOSITORY / SERVICE, env=UNTOUCHED))
    calls = [(page, *call) for page, span in site.code() for call in CLI.findall(span)]
    assert len(calls) > len(commands)
    for page, words, rest in calls:
        command = commands
        for word in words.split():
            if not command["commands"]:
                break  # an argument
            assert word in command["commands"], (page, words)
            command = command["commands"][word]
        options = set(re.findall(r"--[a-z-]+", rest)) - {"--help"}
        assert options <= set(command["options"]), (page, words)


def settings() -> set[str]:
    example = (REPOSITORY / SERVICE / ".env.example").read_text("utf-8")
    return set(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=", example, re.MULTILINE))


def test_env_example_lists_every_setting() -> None:
    code = (REPOSITORY / SERVICE / "src/core/config.py").read_text("utf-8")
    fields = set(re.findall(r"^    ([A-Z][A-Z_]+): ", code, re.MULTILINE))
    assert fields
    assert fields - settings() == UNLISTED


def test_named_settings_exist(site: Site) -> None:
    """Or a variable that a file of the service or a Makefile reads. `REDIS_*` is a prefix."""
    files = [path for path in (REPOSITORY / SERVICE).rglob("*") if path.suffix in READ_FROM]
    files += [REPOSITORY / "Makefile", REPOSITORY / SERVICE / "Makefile"]
    texts = [file.read_text("utf-8") for file in files]
    known = settings() | {name for text in texts for name in NAME.findall(text)}
    named = {(page, name) for page, span in site.code() for name in VARIABLE.findall(span)}
    for page, name in named:
        if name.endswith("*"):
            assert any(each.startswith(name.removesuffix("*")) for each in known), (page, name)
        else:
            assert name in known or FOREIGN.fullmatch(name), (page, name)


def test_named_files_exist(site: Site) -> None:
    """In the repository, or in a service with every feature."""
    folders = (REPOSITORY, REPOSITORY / SERVICE)
    missing = {
        (page, name)
        for page, span in site.code()
        for name in SOURCE.findall(span)
        if not CREATED.search(name) and not any((folder / name).exists() for folder in folders)
    }
    assert missing == set()


# The answers that add nothing to the service.
BARE = {"cache_backend": "none", "task_queue": "none", "scheduler": "no", "auth": "keys"}


@pytest.mark.parametrize("question", BARE)
def test_answers_include_the_listed_parts(bake: Bake, question: str) -> None:
    """Files, settings, packages and Compose services exist with the listed answers only."""
    rows = parts_of(question)
    assert rows
    for answer in tables.choices_of(question):
        project = bake(**BARE | {question: answer})
        listed = {part: answer in answers for parts, answers in rows for part in parts}
        assert {part: has(project, *part) for part in listed} == listed, answer


def parts_of(question: str) -> list[tuple[list[tuple[str, str]], list[str]]]:
    """Return each row of the section's table "Included with": parts, and the answers with them."""
    table = section_of(question).partition("| Included with |\n")[2].partition("\n\n")[0]
    rows = (line.strip("|").split("|") for line in table.splitlines()[1:])
    return [(parts_in(parts), CODE_SPAN.findall(answers)) for parts, answers in rows]


FILES = {
    "setting": ".env.example",
    "package": "requirements.txt",
    "development package": "requirements-dev.txt",
    "Compose service": "docker-compose.yml",
}


def parts_in(cell: str) -> list[tuple[str, str]]:
    """Return the parts that a cell lists: files, or names in one of the files above."""
    found = []
    for group in cell.split(";"):
        kind = group.strip().partition("`")[0].strip().removesuffix("s")
        found += [(FILES.get(kind, ""), name) for name in CODE_SPAN.findall(group)]
    return found


def has(project: BakedProject, file: str, name: str) -> bool:
    if not file:
        return project.has_file(name)
    text = project.read_file(file)
    if file.endswith(".yml"):
        return name in yaml.safe_load(text)["services"]
    end = r"\w+" if name.endswith("*") else r"(?![\w-])"
    return re.search(rf"^(# )?{name.rstrip('*')}{end}", text, re.MULTILINE) is not None
