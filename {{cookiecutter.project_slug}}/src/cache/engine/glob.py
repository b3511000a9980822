"""Glob patterns, for cache backends without a server.

A `?` matches one character, such as `ü`. A server may match bytes instead.
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
    """Return a regular expression for `fullmatch`."""
    first, *rest = _split_at_stars(pattern)
    if not rest:
        return re.compile(first, re.DOTALL)
    *middle, last = rest
    # Between two stars, the leftmost match is always sufficient. Atomic groups prevent backtracking:
    # without them, `*a*a*a*b` could take exponential time.
    groups = "".join(f"(?>.*?{part})" for part in middle)
    return re.compile(f"{first}{groups}.*{last}", re.DOTALL)


def _split_at_stars(pattern: str) -> list[str]:
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
