"""Read rendered manifests of Kubernetes."""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.project import BakedProject
from tests.subprocesses import run

Object = dict[str, Any]
POD_OWNERS = {"Deployment", "Job"}


@dataclass(frozen=True)
class Pod:
    """The pods of a Deployment or a Job, with one container."""

    owner: Object
    settings: dict[str, str]  # all environment variables

    @property
    def name(self) -> str:
        return str(self.owner["metadata"]["name"])

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.owner["spec"]["template"]["metadata"]["labels"]
        return labels

    @property
    def spec(self) -> Object:
        spec: Object = self.owner["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        [container] = self.spec["containers"]
        found: Object = container
        return found

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}

    def probes(self) -> dict[str, Object]:
        return {kind: probe for kind, probe in self.container.items() if kind.endswith("Probe")}


@dataclass(frozen=True)
class Manifests:
    objects: list[Object]

    def of_kind(self, *kinds: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] in kinds]

    def pods(self) -> list[Pod]:
        return [Pod(owner, self._variables(owner)) for owner in self.of_kind(*POD_OWNERS)]

    def selected(self, labels: Mapping[str, str]) -> list[Pod]:
        return [pod for pod in self.pods() if labels.items() <= pod.labels.items()]

    def _variables(self, owner: Object) -> dict[str, str]:
        [container] = owner["spec"]["template"]["spec"]["containers"]
        maps = {each["metadata"]["name"]: each["data"] for each in self.of_kind("ConfigMap")}
        found: dict[str, str] = {}
        for source in container["envFrom"]:
            found |= maps[source["configMapRef"]["name"]]
        return found | {each["name"]: each["value"] for each in container.get("env", [])}

    def policies_of(self, pod: Pod, direction: str) -> Iterator[Object]:
        """Yield the rules of the network policies that select the pod."""
        for policy in self.of_kind("NetworkPolicy"):
            selector = policy["spec"]["podSelector"].get("matchLabels", {})
            if selector.items() <= pod.labels.items():
                yield from policy["spec"].get(direction, [])


def rendered(project: BakedProject, overlay: str, scratch: Path) -> Manifests:
    """Render an overlay with all components, also those that are commented out."""
    folder = shutil.copytree(project.path / "deploy/k8s", scratch / overlay)
    file = folder / "overlays" / overlay / "kustomization.yaml"
    file.write_text(re.sub("  # - (../../comp)", r"  - \1", file.read_text("utf-8")), "utf-8")
    text = run("kubectl", "kustomize", file.parent, cwd=folder)
    return Manifests(list(yaml.safe_load_all(text)))
