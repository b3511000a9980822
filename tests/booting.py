"""A variant as it is deployed: alone with its requirements.txt, in a fresh environment."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scripts.demo import ITEMS, Service
from tests.baked import BakedProject
from tests.variants import VARIANTS, Answers

LIMIT = 60  # seconds for anything to come about
OLDEST = 11  # of Python 3
KEY = "k" * 32
IMPORTS = "/api/v1/item-imports/"
CACHES = {"all": "redis"}  # what is used then, unless a setting says otherwise


@cache
def pythons() -> dict[str, Path]:
    """Return one interpreter of each version that can run the service, by that version."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/*/bin")
    found = {f"3.{sys.version_info.minor}": Path(sys.executable)}
    for path in (path for folder in folders for path in folder.glob("python3.*")):
        match = re.fullmatch(r"python(3\.(\d+))", path.name)
        if match and int(match[2]) >= OLDEST and match[1] not in found and _works(path):
            found[match[1]] = path
    return found


def _works(python: Path) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def packages_of(answers: Answers) -> frozenset[str]:
    """Return what the answers bring to requirements.txt beside what every service needs."""
    cache, queue, scheduler = answers["cache_backend"], answers["task_queue"], answers["scheduler"]
    brought = {
        "redis": cache in {"redis", "all"} or queue == "redis",
        "pika": queue == "rabbitmq",
        "dramatiq": queue != "none",
        "apscheduler": scheduler == "yes",
    }
    return frozenset(package for package, is_brought in brought.items() if is_brought)


def boots() -> list[tuple[str, str]]:
    """Pair each variant with a Python, so that each set of requirements meets every Python."""
    sets: dict[frozenset[str], list[str]] = {}
    for variant, answers in VARIANTS.items():
        sets.setdefault(packages_of(answers), []).append(variant)
    versions = sorted(pythons())
    return [
        (variants[number % len(variants)], versions[number % len(versions)])
        for variants in sets.values()
        for number in range(max(len(variants), len(versions)))
    ]


def _uv(project: BakedProject, *arguments: str | Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "--quiet", "--no-progress", *arguments], cwd=project.path, check=True)


@contextmanager
def installed(project: BakedProject, version: str, scratch: Path) -> Iterator[Path]:
    """Install the project's requirements, and no more, into an environment that nobody used.

    It always lies at the same place, for then bytecode need not be compiled again.
    """
    environment = scratch / f"python{version}"
    python = environment / "bin" / "python"
    _uv(project, "venv", "--no-project", "--python", pythons()[version], environment)
    _uv(project, "pip", "install", "--python", python, "--requirements", "requirements.txt")
    _uv(project, "pip", "check", "--python", python)
    try:
        yield python
    finally:
        shutil.rmtree(environment)


def production(
    answers: Answers, url_of: Callable[[str], str], database: str, port: int
) -> dict[str, str]:
    """Return the environment of a deployment on the servers."""
    postgres = urlsplit(url_of("postgres"))
    found = {
        "ENV": "production",
        "API_KEYS": KEY,
        "CORS_ORIGINS": "https://example.com",
        "DATABASE_URL": f"postgresql://postgres:secret@/{database}?{postgres.query}",
        "PORT": str(port),
        "HOME": os.environ["HOME"],
        "DRAMATIQ_PROCESSES": "1",
    }
    if answers["task_queue"] == "rabbitmq":
        found["RABBITMQ_URL"] = url_of("rabbitmq")
    if "redis" in packages_of(answers):
        found["REDIS_URL"] = url_of("valkey")
    return found


@contextmanager
def booted(
    project: BakedProject, python: Path, env: dict[str, str], log: Path
) -> Iterator[Service]:
    """Make the database, run the API and the worker, and see them end well."""
    programs = ["api", "worker"] if project.answers["task_queue"] != "none" else ["api"]
    with log.open("wb") as output, ExitStack() as stack:

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [python, *command],
                cwd=project.path,
                env=env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            stack.callback(_end, process)
            return process

        for command in (["cli.py", "db", "init"], ["-m", "alembic", "check"]):
            assert start(*command).wait(LIMIT) == 0, log.read_text("utf-8")
        running = [start("cli.py", program) for program in programs]
        service = Service(f"http://127.0.0.1:{env['PORT']}")
        _wait(lambda: _is_ready(service), log)
        yield service
        for process in running:
            process.terminate()
        ends = {process.wait(LIMIT) for process in running}
        # uvicorn stops in good order, and then dies of the signal that it was sent.
        assert ends <= {0, -signal.SIGTERM}, log.read_text("utf-8")


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its children too
    process.wait()


def _wait(seen: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + LIMIT
    while not seen():
        assert time.monotonic() < deadline, log.read_text("utf-8")
        time.sleep(0.1)


def _is_ready(service: Service) -> bool:
    try:
        return service.call("GET", "/api/v1/health/ready").status == HTTPStatus.OK
    except OSError:
        return False


def smoke(service: Service, answers: Answers, log: Path) -> None:
    """Use what every service has, and what the answers brought."""
    item = _call(service, "POST", ITEMS, {"name": "Lamp"}, expect=HTTPStatus.CREATED)
    path = ITEMS + item["id"]
    assert _call(service, "GET", path) == _call(service, "GET", path) == item
    _call(service, "PATCH", path, {"name": "Desk lamp"})
    assert _call(service, "GET", path)["name"] == "Desk lamp"
    if answers["cache_backend"] != "none":
        assert _call(service, "GET", "/api/v1/cache/info")["backend"] == CACHES.get(
            answers["cache_backend"], answers["cache_backend"]
        )
    if answers["task_queue"] != "none":
        follow = _call(service, "POST", IMPORTS, b"name\nLamp\n", expect=HTTPStatus.ACCEPTED)
        task = f"/api/v1/tasks/{follow['task_id']}"
        _wait(lambda: bool(_call(service, "GET", task)["status"] == "done"), log)
    if answers["scheduler"] == "yes":
        _wait(lambda: bool(_call(service, "GET", "/api/v1/scheduler/jobs")["leader"]), log)


def _call(
    service: Service, method: str, path: str, body: object = None, *, expect: int = HTTPStatus.OK
) -> Any:
    kind = {"Content_Type": "text/csv"} if isinstance(body, bytes) else {}
    answer = service.call(method, path, body, X_API_Key=KEY, **kind)
    assert answer.status == expect, f"{method} {path}: {answer}"
    return answer.body
