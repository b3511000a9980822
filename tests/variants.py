"""The variants: every combination of the structural answers, and how each is tested.

All are rendered and linted. A set that covers all triples of answers is type-checked and started. A
set that covers all pairs runs its own tests.
"""

import itertools
from itertools import chain

from scripts.tables import choices_of, names

Answers = dict[str, str]
Tuples = frozenset[tuple[tuple[str, str], ...]]

# The questions that change code. A new one needs an entry here, and words in feature_words.py.
# With the one with the most answers last, `cover` needs the fewest rows.
STRUCTURAL = {
    question: choices_of(question)
    for question in ("task_queue", "scheduler", "example", "auth", "cache_backend")
}
# Choices that change text or single files. All pairs of any two answers are covered.
OTHERS = {
    question: choices_of(question)
    for question in names()
    if question not in STRUCTURAL and choices_of(question)
}

# The un-rendered service: both brokers and both logins, which no answer selects.
EVERYTHING = {
    "cache_backend": "all",
    "__queue_redis": "yes",
    "__queue_rabbitmq": "yes",
    "__oidc": "yes",
    "__users": "yes",
    "deployment": "kubernetes",
}


def combinations(questions: dict[str, list[str]]) -> list[Answers]:
    return [
        dict(zip(questions, words, strict=True)) for words in itertools.product(*questions.values())
    ]


def tuples(answers: Answers, size: int) -> Tuples:
    return frozenset(itertools.combinations(sorted(answers.items()), size))


def cover(rows: list[Answers], size: int, begin: list[Answers]) -> list[Answers]:
    """Select rows until every combination of `size` answers in any row is in a selected one.

    Greedy: the next row is the first of those with the most new combinations.
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
SMALLEST = {question: words[-1] for question, words in STRUCTURAL.items()} | {"auth": "keys"}
TESTED = cover(ALL, 2, begin=[ALL[0], SMALLEST])  # starts with the default
BOOTED = cover(ALL, 3, begin=TESTED)


def _variants() -> dict[str, Answers]:
    """Add to each combination the other answers with the most new pairs.

    With or without the example, each combination has the manifests of Kubernetes once.
    """
    variants: dict[str, Answers] = {}
    seen: Tuples = frozenset()
    others = combinations(OTHERS)
    for number, structure in enumerate(ALL):
        deployment = OTHERS["deployment"][(number + number // 2) % 2]
        candidates = (structure | other for other in others if other["deployment"] == deployment)
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
    """Return the variants that match, for example, `cache_backend=file,none scheduler=no`.

    Raises ValueError for an invalid condition.
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
        raise ValueError(f"{text!r} must be one of {', '.join(f'{name}=…' for name in STRUCTURAL)}")
    words = listed.split(",")
    if unknown := set(words) - set(STRUCTURAL[question]):
        allowed = ", ".join(STRUCTURAL[question])
        raise ValueError(f"{question} has no answer {', '.join(unknown)!r}; use {allowed}")
    return question, words
