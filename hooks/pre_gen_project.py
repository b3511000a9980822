"""Check the answers that are free text, before any file is written.

cookiecutter itself checks choices and booleans.  Standard library only.
"""

import importlib.metadata
import json
import re
import sys
import unicodedata
from pathlib import Path

ANSWERS = r"""{{ cookiecutter | tojson }}"""  # tojson escapes every quote

OLDEST_COOKIECUTTER = (2, 6)
LENGTHS = {"project_name": 80, "description": 300, "author_name": 100}  # in characters
MAY_BE_EMPTY = {"description"}
SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SLUG_LENGTH = 63  # the limit of a DNS label
# Windows does not allow files with these names; Docker reserves the image name "scratch".
RESERVED = re.compile(r"aux|con|nul|prn|com[0-9]|lpt[0-9]|scratch")
EMAIL = re.compile(
    r"[\w!#$%&'*+/=?^~-]+(\.[\w!#$%&'*+/=?^~-]+)*"
    r"@([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])",
    re.ASCII | re.IGNORECASE,
)
EMAIL_LENGTH = 254
# Syntax in a rendered file (TOML, Markdown, shell) or in Jinja, which renders the text again in an
# update.
FORBIDDEN = ("\\", "`", "<", ">", "{" + "{", "{" + "%", "{" + "#")
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}  # Unicode categories of invisible characters
JOINERS = "\u200c\u200d\u200e\u200f"  # invisible too, but valid inside words and emoji


def slug_error(slug):
    if len(slug) > SLUG_LENGTH:
        return "has %d characters; use at most %d" % (len(slug), SLUG_LENGTH)
    if not SLUG.fullmatch(slug):
        return (
            "cannot be %r; use lowercase letters, digits and single dashes, starting with a letter, "
            "for example my-service" % slug
        )
    if RESERVED.fullmatch(slug):
        return "cannot be %r: Windows or Docker reserves this name; use another one" % slug
    return ""


def text_error(question, text):
    visible = any(character.isprintable() and not character.isspace() for character in text)
    if not visible and question not in MAY_BE_EMPTY:
        return "is empty; type at least one visible character"
    if len(text) > LENGTHS[question]:
        return "has %d characters; use at most %d" % (len(text), LENGTHS[question])
    for character in text:
        if unicodedata.category(character) in HIDDEN and character not in JOINERS:
            return "contains the invisible character U+%04X; remove it" % ord(character)
    for mark in FORBIDDEN:
        if mark in text:
            return "contains %s; remove it (not allowed: %s)" % (mark, " ".join(FORBIDDEN))
    if text != text.strip() or text.startswith("# %"):
        return "starts or ends with a space, or starts with # %; remove it"
    return ""


def email_error(email):
    if len(email) <= EMAIL_LENGTH and EMAIL.fullmatch(email):
        return ""
    return (
        "cannot be %r; use one email address, for example name@example.com" % email[:EMAIL_LENGTH]
    )


def find_errors(answers):
    """Return an error message, one line for each invalid answer, or None."""
    version = importlib.metadata.version("cookiecutter")
    if tuple(map(int, version.split(".")[:2])) < OLDEST_COOKIECUTTER:
        return (
            "This template needs cookiecutter 2.6 or newer; you have %s. "
            "Upgrade it, for example with: pip install --upgrade cookiecutter" % version
        )
    texts = {key: "" if answer is None else str(answer) for key, answer in answers.items()}
    errors = {"project_slug": slug_error(texts["__typed_slug"])}
    errors.update((question, text_error(question, texts[question])) for question in LENGTHS)
    errors["author_email"] = email_error(texts["author_email"])
    found = ["%s %s." % (question, error) for question, error in errors.items() if error]
    return "\n".join(found) or None


if __name__ == "__main__":
    error = find_errors(json.loads(ANSWERS))
    Path(__file__).unlink()  # cookiecutter leaves this rendered copy in the temporary folder
    sys.exit(error)
