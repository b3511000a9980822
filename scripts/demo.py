"""Create a service with the default answers, run it, and call it over HTTP.

The service stays in build/demo until the next demo. This script needs only cookiecutter.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "demo"
PROJECT = BUILD / "my-service"
LOG = BUILD / "service.log"
LIMIT = 60.0  # seconds to wait for one result
GIT = ("git", "-C", PROJECT, "-c", "user.name=Demo", "-c", "user.email=demo@localhost")
UNSHOWN = {"created_at", "updated_at", "instance", "request_id", "description"}


class DemoError(Exception):
    """The demo cannot continue; the message says why."""


say = partial(print, flush=True)


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shown = " ".join(map(str, command))
        raise DemoError(f"`{shown}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def scaffold() -> None:
    if (PROJECT / ".data" / "dev.env").exists():
        raise DemoError(f"{PROJECT} is running: stop its `make dev` first.")
    if any(path.name != ".venv" for path in PROJECT.glob("*")) and is_changed():
        raise DemoError(f"{PROJECT} has changes: move or delete it first.")
    for path in PROJECT.glob("*"):
        if path.name != ".venv":  # packages from an earlier demo
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    say("Creating a service with the default answers")
    options = ["--no-input", "--overwrite-if-exists", "--output-dir", str(BUILD)]
    run(sys.executable, "-m", "cookiecutter", ROOT, *options)
    run(*GIT, "init", "--quiet")
    run(*GIT, "add", "--all")
    run(*GIT, "commit", "--quiet", "--message", "Created by the demo")
    say("Installing its packages into its .venv")
    run("make", "--no-print-directory", "setup", f"PYTHON={sys.executable}", cwd=PROJECT)


def is_changed() -> bool:
    """Return whether the service differs from the commit of an earlier demo."""
    if not (PROJECT / ".git").is_dir():
        return True
    return run(*GIT, "status", "--porcelain") != "" or run(*GIT, "rev-list", "HEAD").count("\n") > 1


def environment(project: Path, port: int) -> dict[str, str]:
    """Return the environment without settings of a service, so that it uses its own database."""
    example = (project / ".env.example").read_text("utf-8")
    settings = set(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=", example, re.MULTILINE))
    kept = {name: value for name, value in os.environ.items() if name not in settings}
    return kept | {"PORT": str(port), "ENV_FILE": ""}


class Service:
    def __init__(self, address: str) -> None:
        self.address = address
        self.session = requests.Session()
        self.session.trust_env = False  # a proxy cannot reach a service on this machine

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.session.request(method, self.address + path, timeout=10, **options)

    def show(self, method: str, path: str, *, expect: int = 200, **options: Any) -> Any:
        """Call, print the call and the main parts of its response, and return the body."""
        sent = [json.dumps(options[name]) for name in ("json", "headers") if name in options]
        say("  ".join([f"    {method} {path}", *sent]))
        response = self.call(method, path, **options)
        body = response.json()
        brief = {name: value for name, value in body.items() if name not in UNSHOWN}
        if isinstance(brief.get("items"), list):
            brief["items"] = [item["name"] for item in brief["items"]]
        say(f"    {response.status_code}  {json.dumps(brief)}")
        if response.status_code != expect:
            raise DemoError(f"{method} {path} responded {response.status_code}, not {expect}.")
        return body

    def until(self, path: str, seen: Callable[[Any], Any]) -> Any:
        """Poll a path until `seen` returns a true value for the body; return that value."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            try:
                if found := seen(self.call("GET", path).json()):
                    return found
            except requests.ConnectionError:
                pass
            time.sleep(0.1)
        raise DemoError(f"{path} did not show the expected result:\n{LOG.read_text()}")


@contextmanager
def running() -> Iterator[Service]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    say("Starting it with `make dev`: PostgreSQL, Valkey, migrations, API, worker, scheduler")
    make, env = ["make", "--no-print-directory", "dev"], environment(PROJECT, port)
    with LOG.open("wb") as log:
        process = subprocess.Popen(make, cwd=PROJECT, env=env, stdout=log, stderr=log)
    try:
        service = Service(f"http://127.0.0.1:{port}")
        service.until("/api/v1/health/ready", lambda body: body["status"] == "ok")
        yield service
    finally:
        say("Stopping all processes")
        process.terminate()
        process.wait(30)


def walk(service: Service) -> None:
    show, items = service.show, "/api/v1/items/"
    say(f"\nAPI documentation: {service.address}/api/docs\n\n  Readiness:")
    show("GET", "/api/v1/health/ready")
    say("  Create an item (its ID is a UUIDv7), and find it with full-text search:")
    item = show("POST", items, json={"name": "Green lamp"}, expect=201)
    show("GET", f"{items}search?q=green+la")
    say("  A client that lost the response can repeat a POST with the same Idempotency-Key:")
    key = {"Idempotency-Key": '"demo-1"'}
    first = show("POST", items, json={"name": "Wall lamp"}, headers=key, expect=201)
    if show("POST", items, json={"name": "Wall lamp"}, headers=key, expect=201) != first:
        raise DemoError("The repeated request created a second item.")
    say("  Two clients change the same version. The second change is refused (RFC 9457):")
    path, version = items + item["id"], {"If-Match": '"1"'}
    show("PATCH", path, json={"status": "active"}, headers=version)
    show("PATCH", path, json={"name": "Red lamp"}, headers=version, expect=412)
    say("  The cache uses Valkey. The first read after a change returns the new value:")
    for what in ("first read", "cached read", "change", "first read", "cached read"):
        started = time.perf_counter()
        change = {"json": {"name": "Red lamp"}} if what == "change" else {}
        body = service.call("PATCH" if change else "GET", path, **change).json()
        say(f"    {what:11} {body['name']:10} {(time.perf_counter() - started) * 1000:6.1f} ms")
    say("  A tracked background task imports 1,000 CSV rows, one of them without a name:")
    rows = "name,description" + "".join(f"\nItem {number}," for number in range(999)) + "\n,none"
    csv = {"data": rows, "headers": {"Content-Type": "text/csv"}}
    task = show("POST", "/api/v1/item-imports/", expect=202, **csv)
    result = service.until(f"/api/v1/tasks/{task['task_id']}", lambda body: body["result"])
    say(f"    {result}")
    say("  The scheduler runs in a separate process. One job runs immediately:")
    jobs = service.until(
        "/api/v1/scheduler/jobs?runs=1",
        lambda body: [job for job in body["jobs"] for run in job["runs"] if run["finished_at"]],
    )
    say("".join(f"    {job['id']}: {job['runs'][0]['outcome']}\n" for job in jobs))


def main() -> int:
    started = time.monotonic()
    try:
        scaffold()
        with running() as service:
            walk(service)
    except KeyboardInterrupt:
        say("Interrupted. All processes are stopped.")
        return 130
    except (DemoError, OSError, subprocess.TimeoutExpired) as error:
        say(f"\n{error}")
        return 1
    say(
        f"\nDone in {time.monotonic() - started:.0f} s. The service is in {PROJECT.relative_to(ROOT)}."
    )
    say("To create your own service: .venv/bin/cookiecutter . --output-dir ..")
    return 0


if __name__ == "__main__":
    sys.exit(main())
