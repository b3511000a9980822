"""Refuse free text that would not work, one plain sentence each, before a file is written.

cookiecutter itself checks choices and booleans.  Standard library only.
"""

import importlib.metadata
import json
import re
import sys
import unicodedata
from pathlib import Path

ANSWERS = r"""{{ cookiecutter | tojson }}"""  # tojson leaves no quote bare: it cannot end early

OLDEST_COOKIECUTTER = (2, 6)
LENGTHS = {"project_name": 80, "description": 300, "author_name": 100}  # in characters
MAY_BE_EMPTY = {"description"}
SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SLUG_LENGTH = 63  # it becomes a DNS label
# Windows has no such files, and Docker no such image.
RESERVED = re.compile(r"aux|con|nul|prn|com[0-9]|lpt[0-9]|scratch")
EMAIL = re.compile(
    r"[\w!#$%&'*+/=?^~-]+(\.[\w!#$%&'*+/=?^~-]+)*"
    r"@([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])",
    re.ASCII | re.IGNORECASE,
)
EMAIL_LENGTH = 254
# Each ends or begins something in a file that holds the text, or when the project is updated.
FORBIDDEN = ("\\", "`", "<", ">", "{" + "{", "{" + "%", "{" + "#")
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}  # Unicode categories of invisible characters
JOINERS = "\u200c\u200d\u200e\u200f"  # invisible too, but parts of words and of emoji


def slug_fault(slug):
    if len(slug) > SLUG_LENGTH:
        return "has %d characters; use at most %d" % (len(slug), SLUG_LENGTH)
    if not SLUG.fullmatch(slug):
        return (
            "cannot be %r; use small letters, digits and single dashes, beginning with a letter, "
            "such as my-service" % slug
        )
    if RESERVED.fullmatch(slug):
        return "cannot be %r, which Windows or Docker reserves; use another name" % slug
    return ""


def text_fault(question, text):
    visible = any(character.isprintable() and not character.isspace() for character in text)
    if not visible and question not in MAY_BE_EMPTY:
        return "has no visible character; use one or more"
    if len(text) > LENGTHS[question]:
        return "has %d characters; use at most %d" % (len(text), LENGTHS[question])
    for character in text:
        if unicodedata.category(character) in HIDDEN and character not in JOINERS:
            return "contains the hidden character U+%04X; use visible ones only" % ord(character)
    for mark in FORBIDDEN:
        if mark in text:
            return "contains %s; use any text without %s" % (mark, " ".join(FORBIDDEN))
    if text != text.strip() or text.startswith("# %"):
        return "begins or ends with white space, or begins with # %; use it without"
    return ""


def email_fault(email):
    if len(email) <= EMAIL_LENGTH and EMAIL.fullmatch(email):
        return ""
    return "cannot be %r; use one address, such as name@example.com" % email[:EMAIL_LENGTH]


def refusal(answers):
    """Return the sentences that refuse the answers, or None."""
    version = importlib.metadata.version("cookiecutter")
    if tuple(map(int, version.split(".")[:2])) < OLDEST_COOKIECUTTER:
        return "This template needs cookiecutter 2.6 or newer, and this is %s." % version
    texts = {key: "" if answer is None else str(answer) for key, answer in answers.items()}
    faults = {"project_slug": slug_fault(texts["__typed_slug"])}
    faults.update((question, text_fault(question, texts[question])) for question in LENGTHS)
    faults["author_email"] = email_fault(texts["author_email"])
    found = ["%s %s." % (question, fault) for question, fault in faults.items() if fault]
    return "\n".join(found) or None


if __name__ == "__main__":
    verdict = refusal(json.loads(ANSWERS))
    Path(__file__).unlink()  # the rendered copy, which cookiecutter leaves in the temporary folder
    sys.exit(verdict)
