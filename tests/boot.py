"""Start a variant as in production: in a new environment with its requirements.txt alone."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from tests.project import BakedProject
from tests.running import end, is_ready, until
from tests.subprocesses import run
from tests.variants import Answers

LIMIT = 60  # seconds for a program to end
KEY = "8f14e45fceea167a5a36dedd4bea2543"
NO_TASK = UUID(int=0)


@cache
def pythons() -> dict[str, Path]:
    """Return one working interpreter of each installed Python version."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/*/bin")
    found = {f"3.{sys.version_info.minor}": Path(sys.executable)}
    for path in (path for folder in folders for path in folder.glob("python3.*")):
        match = re.fullmatch(r"python(3\.\d+)", path.name)
        if match and match[1] not in found and _works(path):
            found[match[1]] = path
    return found


def _works(python: Path) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def install(project: BakedProject, scratch: Path) -> Path:
    """Install the project's requirements alone into an environment; return its interpreter.

    It uses the selected Python if this machine has it. Projects share an environment of each
    version: uv removes what the next one does not require. So bytecode is compiled once.
    """
    found, version = pythons(), project.answers["python_version"]
    if version not in found:
        version = f"3.{sys.version_info.minor}"
    environment = scratch / f"python{version}"
    python = environment / "bin" / "python"
    uv = partial(run, "uv", "--quiet", "--no-progress", cwd=project.path)
    if not python.exists():
        uv("venv", "--no-project", "--python", found[version], environment)
    uv("pip", "sync", "--python", python, "requirements.txt")
    uv("pip", "check", "--python", python)
    return python


def production(
    answers: Answers, url_of: Callable[[str], str], database: str, port: int
) -> dict[str, str]:
    """Return the environment variables of a production deployment."""
    postgres = urlsplit(url_of("postgres"))
    found = {
        "ENV": "production",
        "API_KEYS": KEY,
        "CORS_ORIGINS": "https://example.com",
        "DATABASE_URL": f"postgresql://postgres:secret@/{database}?{postgres.query}",
        "PORT": str(port),
        "HOME": os.environ["HOME"],
        "DRAMATIQ_PROCESSES": "1",
        "SHUTDOWN_DELAY_SECONDS": "0",  # no proxy
    }
    if answers["task_queue"] == "rabbitmq":
        found["RABBITMQ_URL"] = url_of("rabbitmq")
    if answers.get("auth") == "oidc":  # which is unavailable
        found |= {"OIDC_ISSUER": "https://localhost:1/", "OIDC_AUDIENCE": "shop"}
    if answers.get("auth") == "users":
        found |= {
            "SMTP_HOST": "localhost",
            "MAIL_FROM": "shop@example.com",
            "PUBLIC_URL": "https://example.com",
        }
    if answers["cache_backend"] in {"redis", "all"} or answers["task_queue"] == "redis":
        found["REDIS_URL"] = url_of("valkey")
    return found


# It migrates, then starts the programs of the arguments, and passes SIGTERM on to them. They are
# forks, because the imports of each new process take a second.
LAUNCHER = """
import os, signal, sys
from alembic.config import main as alembic
import cli

def call(*arguments):
    sys.argv = ["cli.py", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise

programs = sys.argv[1:]
call("db", "init")
alembic(["check"])
children = []
for program in programs:
    if (child := os.fork()) == 0:
        sys.exit(call(program))
    children.append(child)
signal.signal(signal.SIGTERM, lambda *_: [os.kill(child, signal.SIGTERM) for child in children])
codes = {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
# uvicorn shuts down, then ends itself with the signal that it received.
sys.exit(not codes <= {0, -signal.SIGTERM})
"""


@contextmanager
def booted(
    project: BakedProject, python: Path, env: dict[str, str], log: Path
) -> Iterator[httpx.Client]:
    """Create the database, run the API and the worker, and check that they stop cleanly."""
    programs = ["api", "worker"] if project.answers["task_queue"] != "none" else ["api"]
    with log.open("wb") as output:
        service = subprocess.Popen(
            [python, "-c", LAUNCHER, *programs],
            cwd=project.path,
            env=env,
            stdout=output,
            stderr=output,
            process_group=0,
        )
    address = f"http://127.0.0.1:{env['PORT']}"
    try:
        until(lambda: service.poll() is not None or is_ready(address), log)
        assert service.poll() is None, log.read_text("utf-8")
        headers = {"X-API-Key": KEY}
        with httpx.Client(base_url=f"{address}/api/v1", headers=headers, trust_env=False) as client:
            yield client
        service.terminate()
        assert service.wait(LIMIT) == 0, log.read_text("utf-8")
    finally:
        end(service)


def smoke(client: httpx.Client, answers: Answers, log: Path) -> None:
    """Call the endpoints that every service has, and those of the selected features."""

    def call(method: str, path: str, expect: int = HTTPStatus.OK, **options: Any) -> Any:
        response = client.request(method, path, **options)
        assert response.status_code == expect, f"{method} {path}: {response.text}"
        return response.json()

    assert call("GET", "/health/live")
    if answers["cache_backend"] != "none":
        used = "redis" if answers["cache_backend"] == "all" else answers["cache_backend"]
        assert call("GET", "/cache/info")["backend"] == used
    if answers["task_queue"] != "none":
        call("GET", f"/tasks/{NO_TASK}", expect=HTTPStatus.NOT_FOUND)
    if answers["scheduler"] == "yes":
        until(lambda: bool(call("GET", "/scheduler/jobs")["leader"]), log)
    if answers["example"] == "yes":
        item = call("POST", "/items/", HTTPStatus.CREATED, json={"name": "Lamp"})
        path = f"/items/{item['id']}"
        assert call("GET", path) == call("GET", path) == item
        call("PATCH", path, json={"name": "Desk lamp"})
        assert call("GET", path)["name"] == "Desk lamp"
    if answers["example"] == "yes" and answers["task_queue"] != "none":
        file = {"content": b"name\nLamp\n", "headers": {"Content-Type": "text/csv"}}
        task = call("POST", "/item-imports/", HTTPStatus.ACCEPTED, **file)
        path = f"/tasks/{task['task_id']}"
        until(lambda: call("GET", path)["status"] in {"done", "succeeded"}, log)
