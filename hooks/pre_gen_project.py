"""Check the answers that are free text, before any file is written.

cookiecutter itself checks choices and booleans.  Standard library only.
Copier checks the same RULES: scripts/copier.py copies them to copier.yml.
"""

import importlib.metadata
import json
import re
import sys
from pathlib import Path

ANSWERS = r"""{{ cookiecutter | tojson }}"""  # tojson escapes every quote

OLDEST_COOKIECUTTER = (2, 6)

# Invisible characters (Unicode categories Cc, Cf, Co, Cs, Zl and Zp), except joiners, which are
# valid inside words and emoji.
HIDDEN = (
    r"\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b"
    r"\u2028-\u202e\u2060-\u206f\ud800-\uf8ff\ufeff\ufff9-\ufffb"
    r"\U000e0001-\U000e007f\U000f0000-\U0010ffff"
)
MARKS = r"\ ` < > {" r"{ {" r"%% {" r"#"  # split, because Jinja renders this file
EMAIL = (
    r"(?!.{255})[a-z0-9_!#$%&'*+/=?^~-]+(\.[a-z0-9_!#$%&'*+/=?^~-]+)*"
    r"@([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])\Z"
)
USE_LETTERS = (
    "cannot be %(answer)r; use lowercase letters, digits and single dashes, "
    "starting with a letter, for example my-service"
)
RESERVED = "cannot be %(answer)r: Windows or Docker reserves this name; use another one"
USE_ONE = "cannot be %(answer).254r; use one email address, for example name@example.com"


def at_most(length):
    pattern = r"(?s)\A.{" + "%d,}" % (length + 1)
    return pattern, "has %%(length)d characters; use at most %d" % length


NOT_EMPTY = (
    r"\A[\s\u200c-\u200f%s]*\Z" % HIDDEN,
    "is empty; type at least one visible character",
)
TEXT = [
    ("[%s]" % HIDDEN, "contains the invisible character U+%(code)04X; remove it"),
    # Syntax in a rendered file (TOML, Markdown, shell) or in Jinja, which renders the text again in
    # an update.
    (r"[\\`<>]|[{][%#{]", "contains %(found)s; remove it (not allowed: " + MARKS + ")"),
    (r"\A\s|\s\Z|\A# %", "starts or ends with a space, or starts with # %%; remove it"),
]
# For each question: patterns that no answer may match, and what to say about one that does.
RULES = {
    "project_slug": [
        at_most(63),  # the limit of a DNS label
        (r"\A(?![a-z][a-z0-9]*(-[a-z0-9]+)*\Z)", USE_LETTERS),
        (r"\A(aux|con|nul|prn|com[0-9]|lpt[0-9]|scratch)\Z", RESERVED),
    ],
    "project_name": [NOT_EMPTY, at_most(80), *TEXT],
    "description": [at_most(300), *TEXT],
    "author_name": [NOT_EMPTY, at_most(100), *TEXT],
    "author_email": [(r"(?ai)\A(?!%s)" % EMAIL, USE_ONE)],
}


def error_of(question, answer):
    """Return what is wrong with the answer, or an empty text."""
    for pattern, error in RULES[question]:
        match = re.search(pattern, answer)
        if match:
            found = match.group()
            code = ord(found) if len(found) == 1 else 0
            words = {"answer": answer, "length": len(answer), "found": found, "code": code}
            return "%s %s." % (question, error % words)
    return ""


def find_errors(answers):
    """Return an error message, one line for each invalid answer, or None."""
    version = importlib.metadata.version("cookiecutter")
    if tuple(map(int, version.split(".")[:2])) < OLDEST_COOKIECUTTER:
        return (
            "This template needs cookiecutter 2.6 or newer; you have %s. "
            "Upgrade it, for example with: pip install --upgrade cookiecutter" % version
        )
    answers["project_slug"] = answers["__typed_slug"]
    texts = {key: "" if answers[key] is None else str(answers[key]) for key in RULES}
    return "\n".join(filter(None, map(error_of, texts, texts.values()))) or None


if __name__ == "__main__":
    error = find_errors(json.loads(ANSWERS))
    Path(__file__).unlink()  # cookiecutter leaves this rendered copy in the temporary folder
    sys.exit(error)
