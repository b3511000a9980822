"""The variants: every combination of the answers that decide on code, and the others pairwise."""

import itertools
import json

from tests.baked import REPOSITORY

Answers = dict[str, str]

STRUCTURAL = {
    "cache_backend": ["redis", "file", "memory", "all", "none"],
    "task_queue": ["redis", "rabbitmq", "none"],
    "scheduler": ["yes", "no"],
}
CHOICES: dict[str, list[str]] = {
    question: default if isinstance(default, list) else ["yes", "no"]
    for question, default in json.loads(
        (REPOSITORY / "cookiecutter.json").read_text("utf-8")
    ).items()
    if not question.startswith("_") and isinstance(default, list | bool)
}
# Both brokers, which no answer gives: the service as it is un-rendered.
EVERYTHING = {"cache_backend": "all", "__queue_redis": "yes", "__queue_rabbitmq": "yes"}
OTHERS = {question: words for question, words in CHOICES.items() if question not in STRUCTURAL}
QUESTIONS = STRUCTURAL | OTHERS


def _combinations(questions: dict[str, list[str]]) -> list[Answers]:
    return [
        dict(zip(questions, words, strict=True)) for words in itertools.product(*questions.values())
    ]


def pairs_of(answers: Answers) -> set[tuple[tuple[str, str], ...]]:
    return set(itertools.combinations(sorted(answers.items()), 2))


def _variants() -> dict[str, Answers]:
    """Give each combination those other answers that bring most pairs which none has had yet."""
    variants: dict[str, Answers] = {}
    seen: set[tuple[tuple[str, str], ...]] = set()
    for structure in _combinations(STRUCTURAL):
        answers = max(
            (structure | others for others in _combinations(OTHERS)),
            key=lambda answers: len(pairs_of(answers) - seen),
        )
        seen |= pairs_of(answers)
        variants["-".join(structure.values())] = answers
    return variants


VARIANTS = _variants()


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
        raise ValueError(
            f"{question} has no answer {', '.join(sorted(unknown))!r}; it has {allowed}"
        )
    return question, words
