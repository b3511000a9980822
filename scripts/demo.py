"""Scaffold a service with the default answers, run it, and walk through it over HTTP.

The service stays in build/demo, to go on with. Standard library only: what runs here is what a
user has after `make demo`, no more.
"""

import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "demo"
PROJECT = BUILD / "my-service"
LOG = BUILD / "service.log"
SCAFFOLDED = BUILD / "scaffolded.json"  # each file of the project, and its digest
# What an earlier demo downloaded, what it stored, and what tools have left.
KEPT = re.compile(r"\.venv|\.data|__pycache__|\..+_cache|\.coverage.*")
START_LIMIT = 60.0  # seconds
ITEMS = "/api/v1/items/"


# A proxy that the environment names would not find a service on this machine.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def say(text: str = "", *, end: str = "\n") -> None:
    print(text, end=end, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done, show a dot a second while it lasts, and say how long it took."""
    say(f"{what} ", end="")
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            say(".", end="")

    ticker = threading.Thread(target=tick, daemon=True)
    started = time.monotonic()
    ticker.start()
    try:
        yield
    except BaseException:
        done.set()
        say()
        raise
    done.set()
    ticker.join()
    say(f" {time.monotonic() - started:.1f} s")


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shown = " ".join(map(str, command))
        raise DemoError(f"`{shown}` failed:\n{done.stdout}{done.stderr}")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Service:
    address: str

    def call(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        request = urllib.request.Request(  # noqa: S310 - our own address
            self.address + path,
            method=method,
            data=body if body is None or isinstance(body, bytes) else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"}
            | {name.replace("_", "-"): value for name, value in headers.items()},
        )
        try:
            with DIRECT.open(request, timeout=10) as response:
                return Answer(response.status, dict(response.headers), self._parse(response))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), self._parse(error))

    @staticmethod
    def _parse(response: Any) -> Any:
        text = response.read().decode()
        return json.loads(text) if "json" in response.headers.get("Content-Type", "") else text

    def show(
        self, method: str, path: str, body: object = None, *, expect: int, **headers: str
    ) -> Answer:
        """Call, print the call and the heart of the answer, and insist on the status."""
        sent = "" if body is None else f"  {brief_of_sent(body)}"
        named = "".join(f"  {name.replace('_', '-')}: {text}" for name, text in headers.items())
        say(f"    {method} {path}{sent}{named}")
        answer = self.call(method, path, body, **headers)
        say(f"    {answer.status}  {brief(answer.body)}")
        if answer.status != expect:
            raise DemoError(f"{method} {path} answered {answer.status} rather than {expect}.")
        return answer

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if self.call("GET", "/api/v1/health/ready").status == 200:  # noqa: PLR2004
                    return
            except OSError:
                time.sleep(0.1)
        raise DemoError(f"The service did not start:\n{LOG.read_text()}")


def brief_of_sent(body: object) -> str:
    return f"({len(body)} bytes)" if isinstance(body, bytes) else json.dumps(body)


def brief(body: Any) -> str:
    """Show the fields that say something, in one line."""
    if not isinstance(body, dict):
        return str(body)[:100]
    skipped = {"created_at", "updated_at", "instance", "request_id", "description"}
    kept = {name: value for name, value in body.items() if name not in skipped}
    if isinstance(items := kept.get("items"), list):
        kept["items"] = [item["name"] for item in items]
    return json.dumps(kept)


def digests() -> dict[str, str]:
    """Return every file of the project, but those to keep, with a digest of its content."""
    return {
        str(path.relative_to(PROJECT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in PROJECT.rglob("*")
        if path.is_file() and not any(map(KEPT.fullmatch, path.relative_to(PROJECT).parts))
    }


def clear() -> None:
    """Remove the project of an earlier demo, unless somebody went on with it."""
    if not SCAFFOLDED.exists():  # nothing there, or interrupted while it was scaffolded
        return
    if (PROJECT / ".data" / "dev.env").exists():
        raise DemoError(f"{PROJECT} is running: stop its `make dev` first.")
    scaffolded = json.loads(SCAFFOLDED.read_text())
    if PROJECT.exists() and digests() != scaffolded:
        raise DemoError(f"{PROJECT} has been changed: move it or delete it first.")
    SCAFFOLDED.unlink()
    for name in scaffolded:
        (PROJECT / name).unlink(missing_ok=True)


def scaffold() -> None:
    clear()
    with step("Scaffolding a service with the default answers"):
        run(
            sys.executable, "-m", "cookiecutter", ROOT, "--no-input", "--overwrite-if-exists",
            "--output-dir", BUILD,
        )  # fmt: skip
    SCAFFOLDED.write_text(json.dumps(digests()))
    say(f"    {PROJECT.relative_to(ROOT)}: {len(list(PROJECT.rglob('src/**/*.py')))} modules")
    with step("Installing its requirements into its own .venv"):
        run("make", "--no-print-directory", "setup", f"PYTHON={sys.executable}", cwd=PROJECT)


def environment(project: Path, port: int) -> dict[str, str]:
    """Return ours without any setting of a service: it must meet nobody's database."""
    example = (project / ".env.example").read_text()
    settings = set(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=", example, re.MULTILINE))
    kept = {name: value for name, value in os.environ.items() if name not in settings}
    return kept | {"PORT": str(port), "ENV_FILE": ""}


@contextmanager
def running() -> Iterator[Service]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with LOG.open("wb") as log:
        process = subprocess.Popen(
            ["make", "--no-print-directory", "dev"],
            cwd=PROJECT,
            env=environment(PROJECT, port),
            stdout=log,
            stderr=log,
        )
        service = Service(f"http://127.0.0.1:{port}")
        try:
            with step(
                "Starting it with `make dev`: PostgreSQL, Valkey, migrations, API, worker, scheduler"
            ):
                service.wait_until_ready(process)
            yield service
        finally:
            with step("Stopping all of it"):
                process.terminate()
                process.wait(30)


def walk(service: Service) -> None:
    say(f"\nIt answers at {service.address}/api/docs\n")
    say("  It checks what it needs:")
    service.show("GET", "/api/v1/health/ready", expect=200)
    say("  Create an item, its key a UUIDv7:")
    item = service.show("POST", ITEMS, {"name": "Green lamp"}, expect=201).body
    service.show("POST", ITEMS, {"name": "Brass table"}, expect=201)
    say("  Full-text search, the last word as a prefix:")
    service.show("GET", f"{ITEMS}search?q=green+la", expect=200)
    say("  The answer to a POST got lost? It is safe to send it again:")
    key = {"Idempotency_Key": '"demo-1"'}
    first = service.show("POST", ITEMS, {"name": "Wall lamp"}, expect=201, **key)
    if service.show("POST", ITEMS, {"name": "Wall lamp"}, expect=201, **key).body != first.body:
        raise DemoError("A second item was made.")
    say("  Two people change the same version; the second one is told:")
    path = ITEMS + item["id"]
    service.show("PATCH", path, {"status": "active"}, expect=200, If_Match='"1"')
    service.show("PATCH", path, {"name": "Red lamp"}, expect=412, If_Match='"1"')
    say("  A rule of the domain, and how errors look (RFC 9457):")
    service.show("PATCH", path, {"status": "archived"}, expect=200)
    service.show("PATCH", path, {"name": "Red lamp"}, expect=409)
    say("  Pages by cursor, counted on request:")
    page = service.show("GET", f"{ITEMS}?limit=1&total=true", expect=200).body
    service.show("GET", f"{ITEMS}?limit=1&cursor={page['next_cursor']}", expect=200)
    walk_through_cache(service)
    follow_a_task(service)
    see_a_tick(service)
    say("  Metrics for Prometheus, by route and never by path:")
    metrics = service.call("GET", "/metrics").body
    counted = [line for line in metrics.splitlines() if "{item_id}" in line and "_total" in line]
    say("\n".join(f"    {line}" for line in counted) + "\n")


def walk_through_cache(service: Service) -> None:
    say("  The cache, in a Valkey that came with the service; a change is seen at once:")
    path = ITEMS + service.call("POST", ITEMS, {"name": "Desk lamp"}).body["id"]
    address = urllib.parse.urlsplit(service.address)
    with closing(http.client.HTTPConnection(address.netloc)) as connection:
        for what, name in [
            ("cold read", "Desk lamp"),
            ("cached read", "Desk lamp"),
            ("update", "Floor lamp"),
            ("fresh read", "Floor lamp"),
            ("cached read", "Floor lamp"),
        ]:
            started = time.perf_counter()
            if what == "update":
                change = json.dumps({"name": name})
                connection.request("PATCH", path, change, {"Content-Type": "application/json"})
            else:
                connection.request("GET", path)
            answer = json.load(connection.getresponse())
            say(
                f"    {what:11} {answer['name']:10} {(time.perf_counter() - started) * 1000:6.1f} ms"
            )
            if answer["name"] != name:
                raise DemoError(f"The {what} gave {answer['name']!r} rather than {name!r}.")
    service.show("GET", "/api/v1/cache/info", expect=200)


def follow_a_task(service: Service) -> None:
    say("  A background task, followed to its end: a CSV of 1,000 items, one without a name:")
    rows = [f"Item {number},From a file" for number in range(999)]
    file = "\n".join(["name,description", *rows, ",Nameless"]).encode()
    accepted = service.show(
        "POST", "/api/v1/item-imports/", file, expect=202, Content_Type="text/csv"
    )
    path = accepted.headers["location"]
    deadline = time.monotonic() + START_LIMIT
    shown = None
    say(f"    GET {path}")
    while True:
        task = service.call("GET", path).body
        if shown != (shown := f"{task['status']}, {task['done'] or 0} of {task['total'] or '?'}"):
            say(f"    {shown}")
        if task["status"] == "done":
            break
        if task["status"] == "failed" or time.monotonic() > deadline:
            raise DemoError(f"The task was not done:\n{LOG.read_text()}")
        time.sleep(0.02)
    say(f"    {json.dumps(task['result'])}")


def see_a_tick(service: Service) -> None:
    say("  The scheduler, in a process of its own; one of its jobs has its first tick at once:")
    path = "/api/v1/scheduler/jobs?runs=1"
    deadline = time.monotonic() + START_LIMIT
    while not (runs := finished_runs(service.call("GET", path).body)):
        if time.monotonic() > deadline:
            raise DemoError(f"No job has run:\n{LOG.read_text()}")
        time.sleep(0.1)
    say(f"    GET {path}")
    for job, run in runs:
        say(f"    {job}: due {run['tick']}, {run['outcome']} {run['finished_at']}")


def finished_runs(body: Any) -> list[tuple[str, Any]]:
    return [(job["id"], run) for job in body["jobs"] for run in job["runs"] if run["finished_at"]]


def main() -> int:
    started = time.monotonic()
    try:
        scaffold()
        with running() as service:
            walk(service)
    except KeyboardInterrupt:
        say("Interrupted; nothing is left running.")
        return 130
    except (DemoError, OSError, subprocess.TimeoutExpired) as error:
        say(f"\n{error}")
        return 1
    say(f"\nDone in {time.monotonic() - started:.0f} s. To go on with this service:")
    say(f"    cd {PROJECT.relative_to(ROOT)}")
    say("    make dev     runs it, and keeps its data")
    say("    make test    runs its tests\n")
    say("For a service of your own, with answers of your own:")
    say("    .venv/bin/cookiecutter . --output-dir ..")
    return 0


if __name__ == "__main__":
    sys.exit(main())
