"""Requests per second of one uvicorn process with 32 connections, as ratios to a reference.

The *textbook* is one file, as the documentation of FastAPI and SQLAlchemy teaches, without
middleware. The textbook *with features* has request IDs, metrics, security
headers and an access log, each in a `BaseHTTPMiddleware`. *Minimal* applications have only what the
work needs: no framework, no ORM, no cache. The service runs in development, where a request needs no
credentials. All applications run in turns, each without and with its access log. PostgreSQL has the same settings
for all.
"""

import argparse
import json
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import NamedTuple

from report import ROUNDS, SECONDS, report
from services import (
    ROOT,
    SOURCE,
    Servers,
    checkout,
    load,
    python_for,
    render,
    run_script,
    serving,
    temporary,
)

CONNECTIONS, ROWS = 32, 110
WARM_UP_SECONDS = min(SECONDS, 0.5)
HERE = Path(__file__).parent
ITEM = json.dumps({"name": "Lamp", "description": "Brass, with a green shade"})

LOGS = "", ", with access log"
FEATURES = "textbook_with_features:app"

# The services that are measured, and their answers. None is the source, which has every feature.
DEFAULT, NO_CACHE, MEMORY, EVERYTHING = (
    "default answers", "without a cache", "memory cache", "every feature",
)  # fmt: skip
ANSWERS: dict[str, dict[str, str] | None] = {
    DEFAULT: {},
    NO_CACHE: {"cache_backend": "none"},
    MEMORY: {"cache_backend": "memory"},
    EVERYTHING: None,
}


class Endpoint(NamedTuple):
    title: str
    path: str  # of the services, below /api/v1
    services: tuple[str, ...]
    references: dict[str, tuple[str, str]]  # application and path; the first is the reference
    body: str = ""


def textbook(path: str, minimal: str = "bare:app") -> dict[str, tuple[str, str]]:
    return {
        "textbook": ("textbook:app", path),
        "textbook with features": (FEATURES, path),
        "minimal": (minimal, path),
    }


ENDPOINTS = {
    "health": Endpoint(
        "Health", "/health/live", (DEFAULT, EVERYTHING), textbook("/health", "bare:asgi")
    ),
    "read": Endpoint("Read by ID", "/items/{item}", (NO_CACHE,), textbook("/items/{item}")),
    "list": Endpoint(
        "List of 100", "/items/?limit=100", (NO_CACHE,), textbook("/items/?limit=100")
    ),
    "memory": Endpoint(
        "Read by ID, cached in memory",
        "/items/{item}",
        (MEMORY,),
        {"FastAPI and a dict": ("bare:app", "/dict/{item}")},
    ),
    "valkey": Endpoint(
        "Read by ID, cached in Valkey",
        "/items/{item}",
        (DEFAULT, EVERYTHING),
        {"FastAPI and redis-py": ("bare:app", "/valkey/{item}")},
    ),
    "create": Endpoint("Create", "/items/", (DEFAULT, EVERYTHING), textbook("/items/"), ITEM),
}


class Place(NamedTuple):
    """Where an application runs, and the ID of an item in its database."""

    folder: Path
    variables: Mapping[str, str]
    item: str
    python: str = sys.executable


class Places:
    """Prepares references and services when an endpoint needs them."""

    def __init__(self, backends: Servers, templates: Mapping[str, Path], folder: Path) -> None:
        self.backends, self.templates, self.folder = backends, templates, folder
        self.reference = self.filled("textbook:app", HERE, "/items/")
        self.services: dict[tuple[str, str], Place] = {}
        self.pythons = {
            version: python_for(template, folder / f"python-{version}")
            for version, template in templates.items()
        }

    def service(self, version: str, kind: str) -> Place:
        if (version, kind) not in self.services:
            name = f"{version} {kind}".strip().replace(" ", "-")
            template, answers = self.templates[version], ANSWERS[kind]
            if answers is None:
                folder = template / SOURCE
            else:
                folder = render(template, self.folder / name, **answers)
            self.services[version, kind] = self.filled(
                "main:app", folder, "/api/v1/items/", self.pythons[version]
            )
        return self.services[version, kind]

    def applications(self, endpoint: Endpoint) -> Iterator[tuple[str, str, str, Place]]:
        """Yield the name, the application, the path and the place of all that is compared."""
        for name, (module, path) in endpoint.references.items():
            yield name, module, path, self.reference
        for version, kind in product(self.templates, endpoint.services):
            place, path = self.service(version, kind), f"/api/v1{endpoint.path}"
            yield f"{version} {kind}".strip(), "main:app", path, place

    def filled(
        self, application: str, folder: Path, path: str, python: str = sys.executable
    ) -> Place:
        """Create a database with rows."""
        variables = self.backends.variables(folder, python)
        headers = {"Content-Type": "application/json"}
        with serving(application, folder, variables, python=python) as address:
            for _ in range(ROWS):
                request = urllib.request.Request(f"{address}{path}", ITEM.encode(), headers)  # noqa: S310 - our own
                with urllib.request.urlopen(request) as response:  # noqa: S310 - as above
                    item = json.load(response)
        return Place(folder, variables, item["id"], python)


def measure(endpoint: Endpoint, places: Places) -> None:
    urls: dict[tuple[str, str], str] = {}
    with ExitStack() as stack:
        for log, (name, module, path, place) in product(LOGS, [*places.applications(endpoint)]):
            # The textbook with features writes an access log instead of uvicorn's.
            options = () if log and module != FEATURES else ("--no-access-log",)
            variables = {**place.variables, "ACCESS_LOG": log}
            server = serving(module, place.folder, variables, *options, python=place.python)
            urls[log, name] = stack.enter_context(server) + path.format(item=place.item)
        rates = take_turns(endpoint, urls)
    base = next(iter(places.templates))
    for log in LOGS:
        costs = {name: found for (each, name), found in rates.items() if each == log}
        report(f"{endpoint.title}{log}", costs, "/s")
        for kind in endpoint.services if base else ():
            pair = {base: costs[f"{base} {kind}"], "now": costs[kind]}
            report(f"Since {base}: {endpoint.title}{log}, {kind}", pair, "/s")


def take_turns(
    endpoint: Endpoint, urls: Mapping[tuple[str, str], str]
) -> dict[tuple[str, str], list[float]]:
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in urls}
    for url in urls.values():
        rate(url, endpoint.body, WARM_UP_SECONDS)
    for number in range(1, ROUNDS + 1):
        sys.stderr.write(f"{endpoint.title}: round {number} of {ROUNDS}\n")
        for key, url in urls.items():
            rates[key].append(rate(url, endpoint.body, SECONDS))
    return rates


def rate(url: str, body: str, seconds: float) -> float:
    """Return successful requests per second."""
    return load(url, body, clients=CONNECTIONS, seconds=seconds).rate


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure endpoints over HTTP.")
    parser.add_argument("endpoints", nargs="*", choices=[*ENDPOINTS, []], metavar="ENDPOINT")
    parser.add_argument("--base", default="", help="also measure this revision of the template")
    options = parser.parse_args()
    with ExitStack() as stack:
        templates = {"": ROOT}
        if options.base:
            templates = {options.base: stack.enter_context(checkout(options.base)), "": ROOT}
        folder = stack.enter_context(temporary())
        places = Places(stack.enter_context(Servers()), templates, folder)
        for name in options.endpoints or ENDPOINTS:
            measure(ENDPOINTS[name], places)


if __name__ == "__main__":
    run_script(main)
