"""Write what the documentation has from elsewhere; with `--check`, only say what is out of date.

The questions come from `cookiecutter.json`, the settings from the service's `.env.example`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENV_EXAMPLE = ROOT / "{{cookiecutter.project_slug}}" / ".env.example"
ASKED: dict[str, Any] = json.loads((ROOT / "cookiecutter.json").read_text("utf-8"))
TAG = re.compile(r"^ *# % .*\n", re.MULTILINE)
HEADING = re.compile(r"^# --- (.+?) -+$", re.MULTILINE)


def names() -> list[str]:
    return [name for name in ASKED if not name.startswith("_")]


def prompt_of(question: str) -> str:
    prompt = ASKED["__prompts__"][question]
    return str(prompt["__prompt__"] if isinstance(prompt, dict) else prompt)


def choices_of(question: str) -> list[str]:
    """Return the answers to choose from, the default first; none for free text."""
    default = ASKED[question]
    if isinstance(default, bool):
        return ["yes", "no"] if default else ["no", "yes"]
    return list(default) if isinstance(default, list) else []


def page_of(question: str) -> str:
    return f"{question}.md" if choices_of(question) else f"names.md#{question}"


def default_of(question: str) -> str:
    default = next(iter(choices_of(question)), None) or ASKED[question]
    made_of = re.search(r"cookiecutter\.(\w+)", default)
    return f"made of `{made_of[1]}`" if made_of else f"`{default}`"


def table_of_questions(folder: str) -> str:
    rows = [
        f"| [`{name}`]({folder}{page_of(name)}) | {prompt_of(name)} "
        f"| {', '.join(f'`{word}`' for word in choices_of(name)) or 'free text'} "
        f"| {default_of(name)} |"
        for name in names()
    ]
    return "\n".join(["| question | asks | answers | default |", "|---|---|---|---|", *rows])


def settings() -> str:
    """Return the sections of `.env.example` as they are with every feature on."""
    text = TAG.sub("", ENV_EXAMPLE.read_text("utf-8"))
    text = text.replace("{{ cookiecutter.__cache_default }}", "redis")
    _, *parts = HEADING.split(text)
    sections = zip(parts[::2], parts[1::2], strict=True)
    return "\n\n".join(f"## {title}\n\n```bash\n{body.strip()}\n```" for title, body in sections)


def between_markers(file: str, name: str, content: str) -> str:
    """Return the file with the content between the two comments that name it."""
    text = (ROOT / file).read_text("utf-8")
    begin, end = f"<!-- begin {name}: scripts/tables.py -->", f"<!-- end {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{file} has no {begin} … {end}")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


GENERATED: dict[str, tuple[str, Callable[[], str]]] = {
    "README.md": ("questions", lambda: table_of_questions("docs/options/")),
    "docs/options/index.md": ("questions", lambda: table_of_questions("")),
    "docs/settings.md": ("settings", settings),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    check = parser.parse_args().check
    stale = False
    for file, (name, generate) in GENERATED.items():
        content = between_markers(file, name, generate())
        if (ROOT / file).read_text("utf-8") == content:
            continue
        stale = True
        print(f"{file} is out of date: run `make docs`" if check else f"wrote {file}")
        if not check:
            (ROOT / file).write_text(content, "utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
