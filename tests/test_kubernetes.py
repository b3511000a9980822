"""The manifests of Kubernetes, without a cluster: valid, consistent, and right for the service."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.conftest import Bake
from tests.kubernetes import Manifests, Pod, rendered
from tests.project import BakedProject, texts_under
from tests.subprocesses import BINARIES, environment, run

SELECTED = {
    "default": {},
    "rabbitmq": {"cache_backend": "all", "task_queue": "rabbitmq", "auth": "users"},
    "file": {"cache_backend": "file", "task_queue": "none"},
    "smallest": {
        "cache_backend": "none",
        "task_queue": "none",
        "scheduler": "no",
        # The longest name; the name of a namespace has at most 63 letters, too.
        "project_slug": "a" * 54 + "-" + "b" * 8,
    },
}
OVERLAYS = ("production", "staging")
PRODUCTION = ["kubectl", "kustomize", "deploy/k8s/overlays/production"]
OPERATOR = "monitoring.coreos.com/v1"  # Prometheus Operator: its schema is not Kubernetes'
PROBES = {"startupProbe", "readinessProbe", "livenessProbe"}
HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
NEEDED = ("DATABASE_URL",)
RESERVED = 3  # connections that PostgreSQL keeps for superusers
HEADROOM = 5  # seconds
SECRET = re.compile(r"^(?:printf %s '(.*)'|openssl .*) > secrets/production/(\w+)$", re.MULTILINE)
KEY = "8d969eef6ecad3c29a3a629280e686cf0c3f5d5a86aff3ca12020c923adc6c92"
# Reads a list of processes, each with its variables and secrets. Prints what their settings mean.
SETTINGS = """\
import json, os, pathlib, sys, tempfile
from src.core import config

def servers(settings):
    url = settings.database_url
    yield url.host, url.port
    broker = getattr(settings, "DRAMATIQ_BROKER", None)
    if broker == "redis":
        yield from settings.queue_redis_url.nodes
    if broker == "rabbitmq":
        host, port = settings.RABBITMQ_URL.get_secret_value().rpartition("@")[2].split(":")
        yield host, int(port)
    if getattr(settings, "CACHE_BACKEND_TYPE", None) == "redis":
        yield from settings.redis_url.nodes
    if getattr(settings, "SMTP_HOST", None):
        yield "host", settings.SMTP_PORT or 587  # its name is no secret

def read(variables, secrets):
    os.environ.clear()
    os.environ.update(base, ENV_FILE="", **variables)
    with tempfile.TemporaryDirectory() as folder:
        for name, value in secrets.items():
            pathlib.Path(folder, name).write_text(value)
        config.SECRETS_DIR = pathlib.Path(folder)
        try:
            settings = config.load_settings()
        except config.InvalidSettingsError as error:
            return {"error": str(error)}
    known = {*type(settings).model_fields, "FORWARDED_ALLOW_IPS"}
    names = ("ENV", "DATABASE_POOL_SIZE", "DRAMATIQ_THREADS", "DRAMATIQ_PROCESSES", "SCHEDULER_ENABLED")
    return {
        "unknown": sorted({*variables, *secrets} - known),
        "servers": sorted(servers(settings)),
        "delay": settings.shutdown_delay,
    } | {name: getattr(settings, name, None) for name in names}

base = dict(os.environ)
print(json.dumps([read(*each) for each in json.load(sys.stdin)]))
"""


# Runs what works without a cluster. Other commands must be valid until they need one.
OFFLINE = """
set -euo pipefail
docker() { test "$1" = push || test -f Dockerfile; }
kubectl() {
    case "$*" in
        kustomize*) command kubectl "$@" ;;
        *"create secret"*) command kubectl "$@" --dry-run=client -o yaml ;;
        *) local said; ! said=$(command kubectl -s http://127.0.0.1:1 "$@" 2>&1); echo "$said" | grep refused ;;
    esac
}
"""
COMMANDS = re.compile(r"^```bash\n(.*?)^```$|`(kubectl .*?)`", re.DOTALL | re.MULTILINE)


@dataclass
class Deployed:
    """A service with the manifests of each overlay, all components included."""

    project: BakedProject
    overlays: dict[str, Manifests]

    @property
    def page(self) -> str:
        return self.project.read_file("docs/kubernetes.md")

    @property
    def secrets(self) -> dict[str, str]:
        """The secrets that the page creates, with values that production accepts."""
        found = SECRET.findall(self.page)
        return {name: url.replace("PASSWORD", "x" * 20) or KEY for url, name in found}

    @cached_property
    def settings(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What the settings of each pod mean, by overlay and process; or without a secret."""
        given = {
            (overlay, pod.name): (pod.settings, self.secrets)
            for overlay, manifests in self.overlays.items()
            for pod in manifests.pods()
        }
        variables, secrets = given["production", "api"]
        given |= {("without", name): (variables, secrets | {name: ""}) for name in NEEDED}
        done = subprocess.run(
            [sys.executable, "-c", SETTINGS],
            cwd=self.project.path,
            env=environment(),
            input=json.dumps(list(given.values())),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(zip(given, json.loads(done.stdout), strict=True))

    def constant(self, file: str, name: str) -> float:
        [value] = re.findall(rf"^{name} = ([\d.]+)", self.project.read_file(file), re.MULTILINE)
        return float(value)

    def connections(self, pod: Pod, settings: dict[str, Any]) -> float:
        """Return the most connections of a pod: its pool, readiness, expensive reads, keys, the relay, ..."""
        if pod.name == "migrate":
            return 2  # one for the lock
        pool = settings["DATABASE_POOL_SIZE"]
        others = self.constant("src/db/session.py", "EXPENSIVE_READS") + 3
        if pod.name == "worker":
            resources = "src/tasks/engine/middleware/resources.py"
            needed = settings["DRAMATIQ_THREADS"] + self.constant(resources, "EXTRA_CONNECTIONS")
            health = 2
            return float(settings["DRAMATIQ_PROCESSES"] * (max(pool, needed) + others) + health)
        if pod.name == "scheduler":
            others += self.constant("src/schedulers/scheduler.py", "CONNECTIONS")
        return float(pool + others)

    def stop_seconds(self, pod: Pod, settings: dict[str, Any]) -> float:
        """Return the most seconds from SIGTERM until a process begins to close its connections."""
        if pod.name == "api":
            image = r"UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=(\d+)"
            [requests] = re.findall(image, self.project.read_file("Dockerfile"))
            cancel = self.constant("src/core/shutdown.py", "_CANCEL_SECONDS")
            return float(settings["delay"]) + float(requests) + cancel
        if pod.name == "worker":
            interrupt = "src/tasks/engine/dramatiq_patches.py"
            tasks = self.constant("cli.py", "SHUTDOWN_SECONDS")
            return tasks + self.constant(interrupt, "INTERRUPT_SECONDS")
        jobs = self.constant("src/schedulers/cli.py", "DRAIN_SECONDS")
        return jobs + self.constant("src/schedulers/engine/executor.py", "RECORD_SECONDS")


@pytest.fixture(scope="module", params=SELECTED)
def deployed(
    request: pytest.FixtureRequest, render: Bake, tmp_path_factory: pytest.TempPathFactory
) -> Deployed:
    project = render(deployment="kubernetes", **SELECTED[request.param])
    scratch = tmp_path_factory.mktemp("overlays")
    return Deployed(project, {name: rendered(project, name, scratch) for name in OVERLAYS})


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def manifests(deployed: Deployed, overlay: str) -> Manifests:
    return deployed.overlays[overlay]


def test_manifests_are_valid(deployed: Deployed, manifests: Manifests, overlay: str) -> None:
    """For the oldest version of Kubernetes that the page names, or for the newest."""
    [oldest] = re.findall(r"Kubernetes (1\.\d+) or newer", deployed.page)
    version = oldest if overlay == "production" else kubernetes_validate.latest_version()
    namespaces = {each["metadata"]["namespace"] for each in manifests.objects}
    for each in manifests.objects:
        if each["apiVersion"] != OPERATOR:
            kubernetes_validate.validate(each, version, strict=True)
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests.objects]
    assert len(names) == len(set(names))
    [namespace] = namespaces
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", namespace)
    assert namespace.endswith("-staging") == (overlay == "staging")


def test_pods_are_hardened(deployed: Deployed, manifests: Manifests) -> None:
    project = deployed.project
    user = re.findall(r"^USER (\d+):", project.read_file("Dockerfile"), re.MULTILINE)[0]
    for pod in manifests.pods():
        slug = project.answers["project_slug"]
        assert pod.container["image"] == f"registry.example.com/{slug}:0.1.0"
        assert pod.container["securityContext"] == HARDENED
        assert {kind: set(each) for kind, each in pod.container["resources"].items()} == {
            kind: {"cpu", "memory"} for kind in ("requests", "limits")
        }
        assert pod.spec["securityContext"]["runAsNonRoot"]
        assert pod.spec["securityContext"]["runAsUser"] == int(user)
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.spec["automountServiceAccountToken"]
        assert not pod.spec["enableServiceLinks"]
        for volume in pod.spec["volumes"]:
            assert "secret" in volume or volume["emptyDir"]["sizeLimit"]


def test_each_process_has_its_pods(deployed: Deployed, manifests: Manifests, overlay: str) -> None:
    """A Deployment for each selected process. The number of replicas has one owner."""
    answers = deployed.project.answers
    expected = {"api"}
    expected |= {"worker"} if answers["__queue"] else set()
    expected |= {"scheduler"} if answers["scheduler"] else set()
    pods = {pod.name: pod for pod in manifests.pods()}
    assert set(pods) == {*expected, "migrate"}
    scaled = {
        each["spec"]["scaleTargetRef"]["name"]
        for each in manifests.of_kind("HorizontalPodAutoscaler")
    }
    assert scaled == ({"api"} if overlay == "production" else set())
    for name in expected:
        spec = pods[name].owner["spec"]
        assert ("replicas" in spec) != (name in scaled)
        assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        assert set(pods[name].probes()) == PROBES


def test_selectors_select_pods(manifests: Manifests) -> None:
    """Those of a Deployment and a PodDisruptionBudget: the pods of one process."""
    for each in manifests.of_kind("Deployment", "PodDisruptionBudget"):
        [pod] = manifests.selected(each["spec"]["selector"]["matchLabels"])
        assert pod.name == each["metadata"]["name"]
    for pod in manifests.pods():
        for spread in pod.spec.get("topologySpreadConstraints", []):
            assert pod in manifests.selected(spread["labelSelector"]["matchLabels"])
    for each in manifests.of_kind("NetworkPolicy"):
        pods = manifests.selected(each["spec"]["podSelector"].get("matchLabels", {}))
        ports = [port for rule in each["spec"].get("ingress", []) for port in rule["ports"]]
        assert pods
        for port in ports:
            assert any(port["port"] in pod.ports for pod in pods)


def test_requests_and_scrapes_reach_the_pods(manifests: Manifests) -> None:
    """Names of ports, services and volumes lead to something."""
    services = {each["metadata"]["name"]: each for each in manifests.of_kind("Service")}
    for service in services.values():
        for port in service["spec"]["ports"]:
            pods = manifests.selected(service["spec"]["selector"])
            assert any(port["targetPort"] in pod.ports for pod in pods)
    [ingress] = [each["spec"] for each in manifests.of_kind("Ingress")]
    [rule] = ingress["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    ports = services[backend["name"]]["spec"]["ports"]
    assert backend["port"]["name"] in {port["name"] for port in ports}
    assert ingress["tls"][0]["hosts"] == [rule["host"]]
    [monitor] = [each["spec"] for each in manifests.of_kind("ServiceMonitor")]
    wanted = monitor["selector"]["matchLabels"].items()
    [found] = [each for each in services.values() if wanted <= each["metadata"]["labels"].items()]
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in found["spec"]["ports"]}
    for pod in manifests.pods():
        assert all(probe["httpGet"]["port"] in pod.ports for probe in pod.probes().values())
        mounted = {mount["name"] for mount in pod.container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod.spec["volumes"]}


def test_the_first_step_applies_what_the_migration_needs(
    manifests: Manifests, overlay: str
) -> None:
    """The settings and the network policies of its pod, and no Deployment."""
    first = Manifests(
        [
            each
            for each in manifests.objects
            if each["metadata"].get("labels", {}).get("apply") == "first"
        ]
    )
    assert {each["kind"] for each in first.objects} == {"ConfigMap", "Job", "NetworkPolicy"}
    [migrate] = first.pods()  # its variables are in one of these ConfigMaps
    assert migrate.settings["ENV"] == overlay
    rules = list(manifests.policies_of(migrate, "egress"))
    assert list(first.policies_of(migrate, "egress")) == rules


def test_processes_accept_their_settings(
    deployed: Deployed, manifests: Manifests, overlay: str
) -> None:
    """The secrets name all servers, and each pod may connect to its servers."""
    for pod in manifests.pods():
        settings = deployed.settings[overlay, pod.name]
        assert "error" not in settings, settings
        assert settings["ENV"] == overlay
        assert settings["unknown"] == []
        assert {host.lower() for host, _ in settings["servers"]} == {"host"}
        assert not settings["SCHEDULER_ENABLED"]  # only `--enabled` runs it
        rules = manifests.policies_of(pod, "egress")
        allowed = {port["port"] for rule in rules for port in rule["ports"]}
        assert allowed >= {53, *(port for _, port in settings["servers"])}


@pytest.mark.parametrize("name", NEEDED)
def test_processes_need_their_secrets(deployed: Deployed, name: str) -> None:
    assert name in deployed.settings["without", name]["error"]


def test_the_database_allows_all_connections(
    deployed: Deployed, manifests: Manifests, overlay: str
) -> None:
    """Also while a deployment replaces all pods, with the most replicas of the autoscaler."""
    [limits] = re.findall(r"`max_connections` of (\d+) for (\w+), and (\d+)", deployed.page)
    allowed = int(limits[0 if overlay == limits[1] else 2]) - RESERVED
    most = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"]["maxReplicas"]
        for each in manifests.of_kind("HorizontalPodAutoscaler")
    }
    needed = 0.0
    for pod in manifests.pods():
        settings, spec, number = deployed.settings[overlay, pod.name], pod.owner["spec"], 1
        if pod.owner["kind"] == "Deployment":
            replicas = most.get(pod.name) or spec["replicas"]
            seconds = deployed.stop_seconds(pod, settings)
            stopping = math.ceil(seconds / spec["minReadySeconds"])
            surge = spec["strategy"]["rollingUpdate"]["maxSurge"]
            number = min(2 * replicas, replicas + surge + stopping)
        needed += number * deployed.connections(pod, settings)
    assert needed <= allowed


def test_pods_have_time_to_stop(deployed: Deployed, manifests: Manifests, overlay: str) -> None:
    """Requests, tasks and jobs finish before the pod is killed, and connections close."""
    relay = "src/tasks/engine/relay.py"
    has_relay = deployed.project.has_file(relay)
    closing = deployed.constant(relay, "STOP_SECONDS") if has_relay else 0
    for pod in manifests.pods():
        if pod.owner["kind"] == "Deployment":
            needed = deployed.stop_seconds(pod, deployed.settings[overlay, pod.name])
            granted = pod.spec["terminationGracePeriodSeconds"]
            assert granted >= needed + closing + HEADROOM, pod.name


def test_alerts_use_metrics_and_commands_of_the_service(deployed: Deployed) -> None:
    sources = texts_under(deployed.project.path / "src").values()
    pages = "".join(texts_under(deployed.project.path / "docs").values())
    rules = [
        rule
        for each in deployed.overlays["production"].of_kind("PrometheusRule")
        for group in each["spec"]["groups"]
        for rule in group["rules"]
    ]
    assert rules
    for rule in rules:
        used = re.findall(r'(\w+)\{job="([\w-]+)"', rule["expr"])
        assert len(used) == rule["expr"].count("{")
        for name, job in used:
            metric = f'"{re.sub("_(bucket|sum|count)$", "", name)}"'
            assert any(metric in source for source in sources), name
            assert job == deployed.project.answers["project_slug"]
        for command in re.findall(r"`(python .*?)`", rule["annotations"]["summary"]):
            assert f"\n{command}\n" in pages  # whose commands tests/test_docs.py checks


def test_commands_of_the_page(bake: Bake) -> None:
    """They are valid, and name what exists."""
    project = bake(deployment="kubernetes")
    page = project.read_file("docs/kubernetes.md")
    commands = [block or span for block, span in COMMANDS.findall(page)]
    env = {"KUBECONFIG": os.devnull, "PATH": f"{BINARIES}:{os.environ['PATH']}"}
    for command in commands:
        run("bash", "-c", OFFLINE + command, cwd=project.path, env=env)
    assert (project.path / "secrets/production/API_KEYS").read_text("utf-8").strip()
    text = "\n".join(commands)
    manifests = Manifests(list(yaml.safe_load_all(run(*PRODUCTION, cwd=project.path))))
    found = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in manifests.objects}
    assert set(re.findall(r"\b(?:job|deployment)/\w+", text)) <= found
    assert set(re.findall(r" -n (\S+)", text)) == {manifests.objects[0]["metadata"]["namespace"]}
    for key, value in re.findall(r" -l (\S+)=(\S+)", text):
        labels = [each["metadata"].get("labels", {}) for each in manifests.objects]
        assert any(each.get(key) == value for each in labels)
    images = {pod.container["image"] for pod in manifests.pods()}
    assert set(re.findall(r"registry\.\S+", text)) == images
    [secret] = re.findall(r"create secret generic (\S+)", text)
    for pod in manifests.pods():
        assert secret in {each.get("secret", {}).get("secretName") for each in pod.spec["volumes"]}
