"""Run each process as its pod does: with the pod's command, variables, secrets and file system."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx
import pytest

from tests import boot
from tests.conftest import Bake
from tests.kubernetes import Pod, rendered
from tests.project import BakedProject
from tests.running import end, free_port, until
from tests.servers import serving

NAMESPACE = ["unshare", "--mount"]
# Mounts the first argument at the second. Makes all folders read-only except the others: pairs of a
# folder and its size.
SANDBOX = """
set -eu
mount --make-rprivate /
mount -t tmpfs none /run
mkdir "$2"
mount --bind "$1" "$2"
shift 2
awk '$2 !~ "^/(dev|proc|sys)" { print $2 }' /proc/self/mounts | sort --unique | while read -r folder; do
    mount -o remount,bind,ro "$folder"
done
while [ "$1" != -- ]; do
    mount -t tmpfs -o "size=$2" none "$1"
    shift 2
done
shift
exec "$@"
"""
# The file cache needs one more folder. The smoke test takes the words of the other answers, too.
ANSWERS = {"cache_backend": "file", "task_queue": "redis", "scheduler": "yes", "example": "yes"}


@dataclass
class Node:
    """Starts pods on this machine."""

    project: BakedProject
    secrets: Path
    scratch: Path
    stack: ExitStack

    @property
    def log(self) -> Path:
        return self.scratch / "log"

    def start(self, pod: Pod, ports: dict[str, int]) -> "subprocess.Popen[bytes]":
        """Start the pod; `ports` are free ports of this machine by the name of the pod's port."""
        free = {str(number): str(ports[name]) for name, number in pod.ports.items()}
        image = self.project.read_file("Dockerfile")
        command = pod.container.get("command") or json.loads(re.findall(r"\nCMD (.*)\n", image)[0])
        command = [free.get(each, each) for each in command]
        temporary = self.scratch / f"tmp-{pod.name}"
        temporary.mkdir()
        mounts = [*self.secret_mount(pod), *self.mounts(pod, temporary), "--", *command]
        env = dict(re.findall(r"(UVICORN_\w+|PYTHONDONTWRITEBYTECODE)=(\S+)", image))
        env |= {name: free.get(value, value) for name, value in pod.settings.items()}
        env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env |= {"TMPDIR": str(temporary), "SHUTDOWN_DELAY_SECONDS": "0"}
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                [*NAMESPACE, "bash", "-c", SANDBOX, "pod", *mounts],
                cwd=self.project.path,
                env=env,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        self.stack.callback(end, process)
        return process

    def secret_mount(self, pod: Pod) -> tuple[str, str]:
        [volume] = [each["name"] for each in pod.spec["volumes"] if "secret" in each]
        paths = {each["name"]: each["mountPath"] for each in pod.container["volumeMounts"]}
        return str(self.secrets), paths[volume]

    def mounts(self, pod: Pod, temporary: Path) -> Iterator[str]:
        """Yield the folders of this machine for the mounts of the pod, each with its size."""
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        for mount in pod.container["volumeMounts"]:
            if "emptyDir" in (volume := volumes[mount["name"]]):
                inside = Path(mount["mountPath"])
                folder = temporary
                if inside != Path("/tmp"):  # noqa: S108 - a container's
                    folder = self.project.path / inside.relative_to("/app")
                    folder.mkdir(exist_ok=True)
                yield from (str(folder), volume["emptyDir"]["sizeLimit"].removesuffix("i"))


def secrets(project: BakedProject, url_of: Callable[[str], str]) -> dict[str, str]:
    """Return the secrets of the page with the addresses of servers of this machine."""
    names = re.findall(
        r"> secrets/production/(\w+)$", project.read_file("docs/kubernetes.md"), re.MULTILINE
    )
    _, _, query = url_of("postgres").partition("?")
    known = {
        "DATABASE_URL": lambda: f"postgresql://postgres:secret@/pods?{query}",
        "DRAMATIQ_REDIS_URL": lambda: url_of("valkey"),
        "API_KEYS": lambda: boot.KEY,
    }
    return {name: known[name]() for name in names}


def responds(pod: Pod, ports: dict[str, int], kind: str) -> bool:
    probe = pod.container[kind]["httpGet"]
    address = f"http://127.0.0.1:{ports[probe['port']]}{probe['path']}"
    try:
        return httpx.get(address, trust_env=False).is_success
    except httpx.TransportError:
        return False


def can_sandbox() -> bool:
    """Return whether this user may mount; the network must be that of the servers."""
    tool = shutil.which(NAMESPACE[0])
    return bool(tool) and subprocess.run([*NAMESPACE, "true"], check=False).returncode == 0


@pytest.mark.skipif(not can_sandbox(), reason="mounting read-only folders needs root on Linux")
def test_pods_run_the_service(bake: Bake, tmp_path: Path) -> None:
    """The Job migrates, the processes work, all probes succeed, and SIGTERM stops them."""
    project = bake(deployment="kubernetes", **ANSWERS)
    pods = {pod.name: pod for pod in rendered(project, "production", tmp_path).pods()}
    folder = tmp_path / "secrets"
    folder.mkdir()
    with ExitStack() as stack:
        url_of = cache(lambda name: stack.enter_context(serving(name)))
        for name, value in secrets(project, url_of).items():
            (folder / name).write_text(value + "\n", "utf-8")
        node = Node(project, folder, tmp_path, stack)
        create_database(project, url_of("postgres"))
        assert node.start(pods.pop("migrate"), {}).wait(boot.LIMIT) == 0, node.log.read_text(
            "utf-8"
        )
        ports = {name: {port: free_port() for port in pod.ports} for name, pod in pods.items()}
        running = [node.start(pod, ports[name]) for name, pod in pods.items()]
        for name, pod in pods.items():
            for kind in pod.probes():
                until(lambda: responds(pod, ports[name], kind), node.log)  # noqa: B023 - called now
            metrics = f"http://127.0.0.1:{ports[name]['metrics']}/metrics"
            assert "# HELP" in httpx.get(metrics, trust_env=False).text
        address = f"http://127.0.0.1:{ports['api']['http']}/api/v1"
        headers = {"X-API-Key": boot.KEY}
        with httpx.Client(base_url=address, headers=headers, trust_env=False) as client:
            boot.smoke(client, ANSWERS, node.log)
        for process in running:
            process.terminate()
        codes = {process.wait(boot.LIMIT) for process in running}
        assert codes <= {0, -signal.SIGTERM}, node.log.read_text("utf-8")


def create_database(project: BakedProject, url: str) -> None:
    _, _, query = url.partition("?")
    env = {**os.environ, "ENV_FILE": "", "DATABASE_URL": f"postgresql://postgres@/pods?{query}"}
    script = (
        "import asyncio; from src.core.config import get_settings;"
        "from src.db.setup import create_database;"
        "asyncio.run(create_database(get_settings().database_url))"
    )
    subprocess.run(
        [sys.executable, "-B", "-c", script], cwd=project.path, env=env, check=True, timeout=60
    )
