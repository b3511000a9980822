"""Write the table of questions in the README; with `--check`, only report whether it is stale.

The questions and their default answers come from `cookiecutter.json`.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- begin questions: scripts/tables.py -->", "<!-- end questions -->"
ASKED: dict[str, Any] = json.loads((ROOT / "cookiecutter.json").read_text("utf-8"))


def names() -> list[str]:
    return [name for name in ASKED if not name.startswith("_")]


def prompt_of(question: str) -> str:
    prompt = ASKED["__prompts__"][question]
    return str(prompt["__prompt__"] if isinstance(prompt, dict) else prompt)


def choices_of(question: str) -> list[str]:
    """Return the possible answers, the default first; an empty list for free text."""
    default = ASKED[question]
    if isinstance(default, bool):
        return ["yes", "no"] if default else ["no", "yes"]
    return list(default) if isinstance(default, list) else []


def default_of(question: str) -> str:
    default = next(iter(choices_of(question)), None) or ASKED[question]
    source = re.search(r"cookiecutter\.(\w+)", default)
    return f"made from `{source[1]}`" if source else f"`{default}`"


def table() -> str:
    rows = [
        f"| [`{name}`](docs/questions.md#{name}) | {prompt_of(name)} "
        f"| {', '.join(f'`{word}`' for word in choices_of(name)) or 'free text'} "
        f"| {default_of(name)} |"
        for name in names()
    ]
    return "\n".join(["| Question | Prompt | Answers | Default |", "|---|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="do not write; fail if stale")
    check = parser.parse_args().check
    text = README.read_text("utf-8")
    head, _, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise SystemExit(f"README.md has no {BEGIN} … {END}: add both lines.")
    fresh = f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"
    if fresh == text:
        return 0
    if check:
        print("README.md is stale: run `make docs`")
        return 1
    README.write_text(fresh, "utf-8")
    print("wrote README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
