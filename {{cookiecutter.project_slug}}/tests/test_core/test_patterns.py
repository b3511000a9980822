"""Regular expressions must be linear: one request could stop the event loop for seconds."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

from src.core.config import ROOT

HEADS = ["", "token_", "a://", "?a=", "[", "{"]
REPEATED = ["://:", "a://", "&a", "a=", "token", "_1", "1", "a", "Aa", "a-", ",", ":", "{", "["]
REPEATED += ["*", "\\", " "]
TIMES = 100_000  # a quadratic pattern needs minutes


def _patterns() -> Iterator[tuple[str | bytes, int, str]]:
    """Find the constant patterns in `src`, their flags, and how they are applied."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="re"), attr=method),
                    args=[ast.Constant(value=str() | bytes() as pattern), *_],
                ) if method != "escape":
                    names = re.findall(r"\bre\.([A-Z]+)\b", ast.unparse(node))
                    flags = sum(getattr(re, name) for name in names)
                    if method in {"compile", "sub"}:
                        name = source.splitlines()[node.lineno - 1].partition(" ")[0]
                        used = re.escape(name) + r"\.(search|sub|findall|finditer|split)\("
                        is_searched = method == "sub" or re.search(used, source)
                        method = "search" if is_searched else "fullmatch"
                    yield pattern, int(flags), method


PATTERNS = list(_patterns())


def apply_all() -> None:
    for (pattern, flags, method), head, repeated in product(PATTERNS, HEADS, REPEATED):
        text = head + repeated * TIMES + "\0"
        compiled: re.Pattern[Any] = re.compile(pattern, flags)
        getattr(compiled, method)(text.encode() if isinstance(pattern, bytes) else text)


def test_patterns_are_linear() -> None:
    code = "from tests.test_core.test_patterns import apply_all; apply_all()"
    assert PATTERNS
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
