"""Run the parts of `make bench`, and write their results to the documentation."""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import page
from endpoints import ENDPOINTS
from services import run_script

from dev.supervisor import supervised

FOLDER = Path(__file__).parent
# The scripts of this folder, in the order of the page, and the headings of their sections.
PARTS = {
    "endpoints": "Endpoints over HTTP",
    "keys": "API keys",
    "cache": "Cache",
    "tasks": "Background tasks",
    "log_in": "Log-ins",
    "tails": "Slowest requests",
    "scale": "Rows and workers",
    "start": "Start, memory and generation",
}


def main() -> None:
    options = parsed()
    chosen = options.only.split(",") if options.only else list(PARTS)
    endpoints = [name for name in chosen if name in ENDPOINTS]
    if unknown := [name for name in chosen if name not in PARTS and name not in ENDPOINTS]:
        known = ", ".join([*PARTS, *ENDPOINTS])
        sys.exit(f"ONLY={','.join(unknown)} is unknown: choose from {known}.")
    if any(value is not None and value <= 0 for value in (options.rounds, options.seconds)):
        sys.exit("ROUNDS and SECONDS must be above 0.")
    arguments = {"endpoints": [*endpoints, *(("--base", options.base) if options.base else ())]}
    parts = [part for part in PARTS if part in chosen or (part == "endpoints" and endpoints)]
    if options.base and "endpoints" not in parts:
        sys.exit("BASE compares endpoints only: add one to ONLY.")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        results = Path(folder, "results.jsonl")
        variables = {**os.environ, "BENCH_RESULTS": str(results)}
        variables |= {"BENCH_ROUNDS": str(options.rounds)} if options.rounds else {}
        variables |= {"BENCH_SECONDS": str(options.seconds)} if options.seconds else {}
        for part in parts:
            run_part(part, arguments.get(part, []), variables)
        if options.write:
            lines = results.read_text("utf-8").splitlines()
            page.write([*map(json.loads, lines)], PARTS, command_of(options), options.write)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="parts or endpoints, separated by commas")
    parser.add_argument("--base", help="a revision, to measure its endpoints too")
    parser.add_argument("--rounds", type=int, help="how often each application is measured")
    parser.add_argument("--seconds", type=float, help="duration of the load in a round")
    parser.add_argument("--write", type=Path, help="the page to update")
    return parser.parse_args()


def command_of(options: argparse.Namespace) -> str:
    names = ("only", "base", "rounds", "seconds")
    given = [f"{name.upper()}={value}" for name in names if (value := getattr(options, name))]
    return " ".join(["make bench", *given])


def run_part(part: str, arguments: list[str], variables: dict[str, str]) -> None:
    print(f"\n== {PARTS[part]} (benchmarks/{part}.py)", flush=True)
    started = time.monotonic()
    command = [sys.executable, FOLDER / f"{part}.py", *arguments]
    # If this process is killed, the part ends, and all files are removed.
    remove = [Path(variables["BENCH_RESULTS"]).parent]
    with supervised(command, env=variables, remove=remove, stop_timeout=30) as process:
        if process.wait() != 0:
            sys.exit(1)
    print(f"\n== {PARTS[part]}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    run_script(main)
