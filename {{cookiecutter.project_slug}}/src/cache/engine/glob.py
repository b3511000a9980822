"""Glob patterns, for the backends that have no server to ask.

They match characters, where a server may match bytes: `?` takes all of an `ü`.
"""

import re
from functools import lru_cache

_TOKEN = re.compile(
    r"(?P<many>\*+)"
    r"|(?P<one>\?)"
    r"|\[(?P<negated>\^?)(?P<members>(?:\\.|[^\]]-.|[^\]])*)(?:\]|\Z)"
    r"|(?P<escaped>\\.)"
    r"|(?P<literal>.)",
    re.DOTALL,
)
_MEMBER = re.compile(r"\\(.)|(.)-(.)|(.)", re.DOTALL)


@lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Translate to an expression for `fullmatch`."""
    first, *rest = _between_stars(pattern)
    if not rest:
        return re.compile(first, re.DOTALL)
    *middle, last = rest
    # The leftmost match of what stands between two stars is as good as any other, and an atomic
    # group keeps to it: otherwise `*a*a*a*b` would take exponential time.
    groups = "".join(f"(?>.*?{part})" for part in middle)
    return re.compile(f"{first}{groups}.*{last}", re.DOTALL)


def _between_stars(pattern: str) -> list[str]:
    parts = [""]
    for token in _TOKEN.finditer(pattern):
        if token["many"]:
            parts.append("")
        elif token["one"]:
            parts[-1] += "."
        elif token["members"] is not None:
            parts[-1] += _character_class(token["members"], negated=bool(token["negated"]))
        else:
            parts[-1] += re.escape((token["literal"] or token["escaped"])[-1])
    return parts


def _character_class(members: str, *, negated: bool) -> str:
    ranges = ""
    for escaped, start, end, single in _MEMBER.findall(members):
        low, high = sorted((start, end)) if start else (escaped or single,) * 2
        ranges += f"{re.escape(low)}-{re.escape(high)}"
    if not ranges:
        return "." if negated else "(?!)"
    return f"[{'^' * negated}{ranges}]"
