"""Run the parts of `make bench`, and write their results to the documentation."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).parent
# The scripts of this folder, in the order of the page, and the headings of their sections.
PARTS = {
    "reads": "Reads",
    "keys": "API keys",
    "cache": "Cache",
    "tasks": "Background tasks",
    "log_in": "Log-ins",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--rounds", help="measurements of each application")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        sys.exit(f"ONLY={','.join(unknown)} is unknown: choose from {', '.join(PARTS)}.")
    with tempfile.NamedTemporaryFile(prefix="bench-", suffix=".jsonl") as results:
        variables = {**os.environ, "BENCH_RESULTS": results.name}
        variables |= {"BENCH_ROUNDS": options.rounds} if options.rounds else {}
        for part in filter(chosen.__contains__, PARTS):
            run_part(part, variables)


def run_part(part: str, variables: dict[str, str]) -> None:
    print(f"\n== {PARTS[part]} (benchmarks/{part}.py)", flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, FOLDER / f"{part}.py"], env=variables, check=False)
    if done.returncode != 0:
        sys.exit(f"benchmarks/{part}.py failed.")
    print(f"\n== {PARTS[part]}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
