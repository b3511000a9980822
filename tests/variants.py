"""The variants: every combination of the structural answers, and how far each is proven.

All are rendered and linted. Those in which each three answers occur are typed and booted, those in
which each two occur run their own tests.
"""

import itertools
from itertools import chain

from scripts.tables import choices_of, names

Answers = dict[str, str]
Tuples = frozenset[tuple[tuple[str, str], ...]]

# The questions that decide on code. A new one gets a name here and words in feature_words.py.
STRUCTURAL = {
    question: choices_of(question)
    for question in ("cache_backend", "task_queue", "scheduler", "example")
}
# Those with a choice that decide on text or on a file: each pair of any two answers occurs.
OTHERS = {
    question: choices_of(question)
    for question in names()
    if question not in STRUCTURAL and choices_of(question)
}

# Both brokers, which no answer gives: the service as it is un-rendered.
EVERYTHING = {"cache_backend": "all", "__queue_redis": "yes", "__queue_rabbitmq": "yes"}


def combinations(questions: dict[str, list[str]]) -> list[Answers]:
    return [
        dict(zip(questions, words, strict=True)) for words in itertools.product(*questions.values())
    ]


def tuples(answers: Answers, size: int) -> Tuples:
    return frozenset(itertools.combinations(sorted(answers.items()), size))


def cover(rows: list[Answers], size: int, begin: list[Answers]) -> list[Answers]:
    """Add rows until each `size` answers that are together in any row are so in a chosen one.

    The next is always the one that brings the most; of several the first.
    """
    chosen = list(begin)
    seen = frozenset(chain.from_iterable(tuples(row, size) for row in chosen))
    new = {number: tuples(row, size) - seen for number, row in enumerate(rows)}
    while any(new.values()):
        best = max(new, key=lambda number: len(new[number]))
        chosen.append(rows[best])
        found = new[best]
        new = {number: left - found for number, left in new.items()}
    return chosen


def name_of(structure: Answers) -> str:
    return "-".join(structure.values())


ALL = combinations(STRUCTURAL)
TESTED = cover(ALL, 2, begin=[ALL[0], ALL[-1]])  # with their own tests; the default and the barest
BOOTED = cover(ALL, 3, begin=TESTED)  # and checked for types and layers


def _variants() -> dict[str, Answers]:
    """Give each combination those other answers that bring the most pairs that are new."""
    variants: dict[str, Answers] = {}
    seen: Tuples = frozenset()
    others = combinations(OTHERS)
    for structure in ALL:
        candidates = (structure | other for other in others)
        answers = max(candidates, key=lambda answers: len(tuples(answers, 2) - seen))
        seen |= tuples(answers, 2)
        variants[name_of(structure)] = answers
    return variants


VARIANTS = _variants()
SETS = {
    "pairs": [name_of(row) for row in TESTED],
    "triples": [name_of(row) for row in BOOTED],
    "all": [name_of(row) for row in [*BOOTED, *(row for row in ALL if row not in BOOTED)]],
}


def chosen(conditions: str) -> list[str]:
    """Return the variants that fit, such as ``cache_backend=file,none scheduler=no``.

    Raises ValueError when a condition is none, or names what is not asked.
    """
    wanted = dict(map(_condition, conditions.split()))
    return [
        variant
        for variant, answers in VARIANTS.items()
        if all(answers[question] in words for question, words in wanted.items())
    ]


def _condition(text: str) -> tuple[str, list[str]]:
    question, _, listed = text.partition("=")
    if question not in STRUCTURAL:
        raise ValueError(f"{text!r} is none of {', '.join(f'{name}=…' for name in STRUCTURAL)}")
    words = listed.split(",")
    if unknown := set(words) - set(STRUCTURAL[question]):
        allowed = ", ".join(STRUCTURAL[question])
        raise ValueError(f"{question} has no answer {', '.join(unknown)!r}; it has {allowed}")
    return question, words
