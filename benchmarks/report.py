"""The results of a benchmark, as `make bench` prints and collects them.

A part of `make bench` is a script of this folder, which also runs alone:
`.venv/bin/python benchmarks/cache.py`. It measures a reference and what it compares in turns, in
rounds, and calls `report()` for each comparison. To add a part, write the script and add it to PARTS
in `run.py`. Its docstring is the text of its section in docs/performance.md, so write it for readers
of that page.
"""

import json
import os
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SECONDS = float(os.environ.get("BENCH_SECONDS", "0.8"))  # of load for each measurement of a round
RESULTS = os.environ.get("BENCH_RESULTS")  # a file for JSON lines

Costs = dict[str, list[float]]  # one value for each round; the first name is the reference


class Row(NamedTuple):
    name: str
    median: float
    ratio: float  # to the reference; above 1 is better
    lowest: float
    highest: float


def rows(costs: Costs, unit: str) -> list[Row]:
    """Compare each round with the reference's result of the same round."""
    reference = next(iter(costs.values()))
    found = []
    for name, values in costs.items():
        pairs = zip(values, reference, strict=True)
        ratios = [a / b if unit == "/s" else b / a for a, b in pairs]
        median = statistics.median(ratios)
        found.append(Row(name, statistics.median(values), median, min(ratios), max(ratios)))
    return found


def report(title: str, costs: Costs, unit: str = "µs") -> None:
    """Print each median, its ratio to the first one, and the lowest and highest ratio.

    With the unit `/s` more is better, with any other unit less is.
    """
    reference, *others = rows(costs, unit)
    print(f"\n{title}\n  {reference.name:32} {reference.median:9,.2f} {unit}")
    for row in others:
        spread = f"{row.lowest:.2f}-{row.highest:.2f}"
        print(f"  {row.name:32} {row.median:9,.2f} {unit}  {row.ratio:5.2f}  {spread}", flush=True)
    if RESULTS:
        line = {"part": Path(sys.argv[0]).stem, "title": title, "unit": unit, "costs": costs}
        with Path(RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
