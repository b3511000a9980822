"""Write what the documentation has from elsewhere; with `--check`, only tell what is out of date.

The questions come from `cookiecutter.json`, the settings from the service's `Settings` and its
`.env.example`, the picture of the architecture from the contracts of its `pyproject.toml`.
"""

import argparse
import importlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from cookiecutter.generate import generate_context
from cookiecutter.prompt import prompt_for_config
from jinja2 import Environment
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from scripts import architecture

ROOT = Path(__file__).resolve().parents[1]
SERVICE = ROOT / "{{cookiecutter.project_slug}}"
QUESTIONS = ROOT / "cookiecutter.json"

# The questions whose answers decide which settings there are.
STRUCTURAL = ("example", "cache_backend", "task_queue", "scheduler")
TAG = re.compile(r" *# % *(\w+) ?(.*)")
FIELD = re.compile(r"    ([A-Z][A-Z_]+): ")
HEADING = re.compile(r"# --- (.+?) -+")
VARIABLE = re.compile(r"(?:# )?([A-Z][A-Z_]+)=(.*)")
ITEM = 3  # spaces before an item of a list in a comment; what continues it has more


@cache
def questions() -> dict[str, Any]:
    """Return what cookiecutter asks, in its order, and how."""
    return dict(json.loads(QUESTIONS.read_text("utf-8")))


def names() -> list[str]:
    return [name for name in questions() if not name.startswith("_")]


def asked(question: str) -> str:
    prompt = questions()["__prompts__"][question]
    return str(prompt["__prompt__"] if isinstance(prompt, dict) else prompt)


def offered(question: str) -> list[str]:
    """Return the answers to choose from, the default first; none for free text."""
    default = questions()[question]
    if isinstance(default, bool):
        return ["yes", "no"] if default else ["no", "yes"]
    return list(default) if isinstance(default, list) else []


def table_of_questions(folder: str) -> str:
    rows = [
        f"| [`{name}`]({folder}{page_of(name)}) | {asked(name)} "
        f"| {quoted(offered(name)) or 'free text'} | {default_of_question(name)} |"
        for name in names()
    ]
    return "\n".join(["| question | asks | answers | default |", "|---|---|---|---|", *rows])


def page_of(question: str) -> str:
    return f"{question}.md" if offered(question) else f"names.md#{question}"


def default_of_question(question: str) -> str:
    default = next(iter(offered(question)), None) or questions()[question]
    made_of = re.search(r"cookiecutter\.(\w+)", default)
    return f"made of `{made_of[1]}`" if made_of else f"`{default}`"


def quoted(words: Iterable[object]) -> str:
    return ", ".join(f"`{word}`" for word in words)


@cache
def combinations() -> list[dict[str, Any]]:
    """Return what templates see, for every combination of the structural answers."""
    found = []
    for answers in itertools.product(*map(offered, STRUCTURAL)):
        given = dict(zip(STRUCTURAL, answers, strict=True))
        context = generate_context(str(QUESTIONS), extra_context=given)
        found.append(dict(prompt_for_config(context, no_input=True)))
    return found


def answers_that_bring(condition: str) -> str:
    """Say which answers make the condition of a tag true, each by itself."""
    holds = Environment(autoescape=True).compile_expression(condition)
    true = [bool(holds(cookiecutter=answers)) for answers in combinations()]
    parts, explained = [], [False] * len(true)
    for question in STRUCTURAL:
        chosen = [word_of(answers[question]) for answers in combinations()]
        enough = [
            word
            for word in offered(question)
            if all(held for held, answer in zip(true, chosen, strict=True) if answer == word)
        ]
        parts += [f"`{question}`: {briefly(enough, question)}"] if enough else []
        explained = [old or answer in enough for old, answer in zip(explained, chosen, strict=True)]
    if explained != true:
        raise ValueError(f"No single answer decides {condition!r}: this table cannot say it.")
    return "; ".join(parts)


def word_of(answer: object) -> str:
    return {True: "yes", False: "no"}[answer] if isinstance(answer, bool) else str(answer)


def briefly(answers: list[str], question: str) -> str:
    others = [word for word in offered(question) if word not in answers]
    brief = len(others) == 1 < len(answers)
    return f"any but `{others[0]}`" if brief else quoted(answers)


@dataclass(frozen=True)
class Described:
    """A variable of `.env.example`: its section, and what the comment above it says."""

    section: str
    name: str
    value: str
    comment: tuple[str, ...]


# No user sets it, so .env.example does not name it.
UNLISTED = [
    Described(
        section="Task queue",
        name="DRAMATIQ_BROKER",
        value="",
        comment=(" Which broker carries the messages; there is no choice but in the template.",),
    )
]


def described() -> Iterator[Described]:
    section, after_variable = "", False
    comment: list[str] = []
    for line in (SERVICE / ".env.example").read_text("utf-8").splitlines():
        variable = VARIABLE.fullmatch(line)
        if TAG.fullmatch(line):
            continue
        if heading := HEADING.fullmatch(line):
            section, comment = heading[1], []
        elif variable:
            yield Described(section, variable[1], variable[2], tuple(comment))
        else:
            comment = [*([] if after_variable or not line else comment), line.removeprefix("#")]
        after_variable = variable is not None


def conditions() -> dict[str, str]:
    """Return the condition of the tag around each field of `Settings`; empty where there is none."""
    found, condition = {}, ""
    for line in (SERVICE / "src/core/config.py").read_text("utf-8").splitlines():
        if tag := TAG.fullmatch(line):
            condition = tag[2] if tag[1] == "if" else ""
        elif field := FIELD.match(line):
            found[field[1]] = condition
    return found


def fields() -> dict[str, FieldInfo]:
    """Import the un-rendered service's `Settings`, which reads nothing until it is called."""
    sys.path.insert(0, str(SERVICE))
    sys.dont_write_bytecode = True
    found: dict[str, FieldInfo] = importlib.import_module("src.core.config").Settings.model_fields
    return found


EVERY = "every service"
FIRST_COLUMNS = ["setting", "is", "default", "says"]


@dataclass(frozen=True)
class Setting:
    name: str
    type: str
    default: str
    says: str
    comes_with: str

    def cells(self) -> list[str]:
        return [f"`{self.name}`", self.type, self.default, self.says, self.comes_with]


def table_of_settings() -> str:
    sections: dict[str, list[Setting]] = {}
    for section, setting in settings():
        sections.setdefault(section, []).append(setting)
    return "\n\n".join(
        part for title, rows in sections.items() for part in (f"## {title}", *table_of(rows))
    )


def table_of(rows: list[Setting]) -> list[str]:
    """Say once what all rows come with, or in a column of its own what each does."""
    origins = {row.comes_with for row in rows}
    columns = FIRST_COLUMNS if len(origins) == 1 else [*FIRST_COLUMNS, "comes with"]
    lines = [columns, ["---"] * len(columns), *(row.cells()[: len(columns)] for row in rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    if len(origins) > 1:
        return [table]
    (origin,) = origins
    return [f"{'In' if origin == EVERY else 'With'} {origin}.", table]


def settings() -> Iterator[tuple[str, Setting]]:
    """Yield each setting and its section, in the order of `.env.example`."""
    known, condition_of = fields(), conditions()
    variables = [*described(), *UNLISTED]
    if forgotten := known.keys() - {variable.name for variable in variables}:
        raise ValueError(f".env.example says nothing of {', '.join(forgotten)}")
    first_of: dict[tuple[str, ...], str] = {}
    for variable in variables:
        first = first_of.setdefault(variable.comment, variable.name)
        words = f"See `{first}`." if first != variable.name else prose(variable.comment, known)
        field, condition = known.get(variable.name), condition_of.get(variable.name, "")
        yield variable.section, setting_of(variable, field, words, condition)


def setting_of(variable: Described, field: FieldInfo | None, words: str, condition: str) -> Setting:
    if field is None:  # uvicorn's
        return Setting(variable.name, "text", f"`{variable.value}`", words, EVERY)
    default = "your answer" if "cookiecutter" in variable.value else default_of(field)
    parts = condition.split(" and ") if condition else []
    comes_with = " and ".join(map(answers_that_bring, parts)) or EVERY
    return Setting(variable.name, type_of(field), default, words, comes_with)


def prose(comment: tuple[str, ...], known: Iterable[str]) -> str:
    """Make a cell of a comment: a list, which is indented in it, takes a line for each item."""
    text, before = "", 1
    for line in comment:
        indent = len(line) - len(line.lstrip())
        begins = indent == ITEM or (indent < ITEM <= before)
        text += ("<br>" if begins else " ") + line.strip()
        before = indent
    escaped = re.sub(r"([*|\[\]])", r"\\\1", text.strip())
    names_in_text = "|".join(name for name in known if "_" in name)  # PORT is a word as well
    return re.sub(rf"(?<![`\w])({names_in_text})(?![`\w])", r"`\1`", escaped)


def default_of(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == []:
        return "none"
    if "cookiecutter." in str(value):
        return "from `pyproject.toml`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


WORDS_OF_TYPES: dict[object, str] = {
    bool: "`true` or `false`",
    list[str]: "list",
    list[SecretStr]: "list of secrets",
    Path: "path",
    SecretStr: "secret",
    str: "text",
}


def type_of(field: FieldInfo) -> str:
    kind = field.annotation
    if type(None) in get_args(kind):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return quoted(get_args(kind))
    if kind is int:
        least = next((mark.ge for mark in field.metadata if isinstance(mark, Ge)), None)
        most = next((mark.le for mark in field.metadata if isinstance(mark, Le)), None)
        return f"{least} or more" if most is None else f"{least} to {most}"
    return WORDS_OF_TYPES[kind]


def between_markers(file: str, name: str, content: str) -> str:
    """Return the file with the content between the two comments that name it."""
    text = (ROOT / file).read_text("utf-8")
    begin, end = f"<!-- begin {name}: scripts/tables.py -->", f"<!-- end {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{file} has no {begin} … {end}")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


GENERATED: dict[str, Callable[[str], str]] = {
    "README.md": lambda file: between_markers(
        file, "questions", table_of_questions("docs/options/")
    ),
    "docs/options/index.md": lambda file: between_markers(
        file, "questions", table_of_questions("")
    ),
    "docs/settings.md": lambda file: between_markers(file, "settings", table_of_settings()),
    "docs/architecture.svg": lambda _: architecture.draw(
        (SERVICE / "pyproject.toml").read_text("utf-8")
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    check = parser.parse_args().check
    stale = {}
    for file, generate in GENERATED.items():
        content = generate(file)
        path = ROOT / file
        if not path.exists() or path.read_text("utf-8") != content:
            stale[file] = content
    for file, content in stale.items():
        print(f"{file} is out of date: run `make docs`" if check else f"wrote {file}")
        if not check:
            (ROOT / file).write_text(content, "utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
