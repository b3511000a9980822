"""Pins are complete and minimal: the declared dependencies and their dependencies, no others.

The dependency graph comes from the metadata of the installed distributions, which are the pinned
ones. Pins are universal, so it is resolved for several systems and interpreters.
"""

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib import metadata

import pytest
from packaging.markers import Environment, default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.conftest import Bake
from tests.project import REPOSITORY, BakedProject
from tests.variants import EVERYTHING, VARIANTS

# The pins of each requirement; more than one if systems need different versions.
Pins = Mapping[str, list[Requirement]]
FILES = ["requirements.txt", "requirements-dev.txt"]
SYSTEMS = [("linux", "Linux", "posix"), ("darwin", "Darwin", "posix"), ("win32", "Windows", "nt")]
# asyncpg needs CPython, so a pin that only PyPy does not need may have no marker for it.
INTERPRETERS = [
    ("CPython", version) for version in ("3.11.0", "3.11.14", "3.12.12", "3.14.2", "3.15.0")
]


def environments() -> list[Environment]:
    """Return this environment, and one for each system and interpreter."""
    here = default_environment()
    return [here] + [
        here
        | {
            "sys_platform": system[0],
            "platform_system": system[1],
            "os_name": system[2],
            "platform_python_implementation": name,
            "implementation_name": name.lower(),
            "implementation_version": version,
            "python_full_version": version,
            "python_version": version.rpartition(".")[0],
        }
        for system, (name, version) in itertools.product(SYSTEMS, INTERPRETERS)
    ]


ENVIRONMENTS = environments()


def parsed(text: str) -> list[Requirement]:
    text = re.sub(r" \\\n    --hash=\S+", "", text)
    lines = (line.partition(" #")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins_of(text: str) -> Pins:
    pins: dict[str, list[Requirement]] = defaultdict(list)
    for pin in parsed(text):
        pins[canonicalize_name(pin.name)].append(pin)
    return pins


@functools.cache
def requirements_of(distribution: str) -> list[Requirement]:
    """Return its dependencies with all extras; none if it is not installed on this system."""
    try:
        return [Requirement(line) for line in metadata.requires(distribution) or []]
    except metadata.PackageNotFoundError:
        return []


def holds(requirement: Requirement, environment: Environment, extra: str = "") -> bool:
    marker = requirement.marker
    return marker is None or marker.evaluate({**environment, "extra": extra})  # type: ignore[dict-item]


@functools.cache
def needs_of(distribution: str, extra: str, environment: int) -> list[Requirement]:
    """Return its dependencies in that environment, for an extra or (`""`) without extras."""
    where = ENVIRONMENTS[environment]
    return [need for need in requirements_of(distribution) if holds(need, where, extra)]


def closure(roots: Iterable[Requirement], environment: int) -> dict[str, SpecifierSet]:
    """Return all direct and indirect dependencies, with their version constraints."""
    found: dict[str, SpecifierSet] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [root for root in roots if holds(root, ENVIRONMENTS[environment])]
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        found[name] = found.get(name, SpecifierSet()) & need.specifier
        for extra in {"", *need.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += needs_of(name, extra, environment)
    return found


def faults(pins: Pins, roots: list[Requirement]) -> set[str]:
    """Return unneeded pins, missing pins, and pins that violate a constraint."""
    found = set()
    for environment, where in enumerate(ENVIRONMENTS):
        needed = closure(roots, environment)
        active = {
            name: pin
            for name, candidates in pins.items()
            for pin in candidates
            if holds(pin, where)
        }
        found |= {f"{name} is not needed" for name in active.keys() - needed.keys()}
        found |= {f"{name} is not pinned" for name in needed.keys() - active.keys()}
        for name in active.keys() & needed.keys():
            if not needed[name].contains(version_of(active[name]), prereleases=True):
                found.add(f"{active[name]} is not {needed[name]}")
    return found


def version_of(pin: Requirement) -> str:
    [specifier] = pin.specifier
    assert specifier.operator == "==", pin
    return specifier.version


def roots_of(project: BakedProject, file: str) -> list[Requirement]:
    declared = project.read_toml("pyproject.toml")
    names = list(declared["project"]["dependencies"])
    if file == "requirements-dev.txt":
        names += declared["dependency-groups"]["dev"]
    return [Requirement(name) for name in names]


@pytest.fixture(scope="module")
def whole(bake: Bake) -> BakedProject:
    """Return the project with every feature, whose pins are resolved by uv."""
    return bake(**EVERYTHING)


@pytest.mark.variants("pairs")
def test_a_variant_pins_what_it_needs(render: Bake, whole: BakedProject, variant: str) -> None:
    """No pin is missing or unneeded, and versions equal those of the project with every feature."""
    project = render(**VARIANTS[variant])
    pinned = {}
    for file in FILES:
        pins = pins_of(project.read_file(file))
        assert faults(pins, roots_of(project, file)) == set(), file
        pinned[file] = lines_of(project, file)
        assert pinned[file] <= lines_of(whole, file)
    assert pinned["requirements.txt"] <= pinned["requirements-dev.txt"]


def lines_of(project: BakedProject, file: str) -> set[str]:
    return {str(pin) for pin in parsed(project.read_file(file))}


def test_the_template_pins_what_it_needs() -> None:
    declared, pinned = (
        (REPOSITORY / f"requirements.{suffix}").read_text("utf-8") for suffix in ("in", "txt")
    )
    assert faults(pins_of(pinned), parsed(declared)) == set()


def test_installed_versions_are_the_pinned_ones(whole: BakedProject) -> None:
    """The tests above read the metadata of installed distributions."""
    texts = [
        (REPOSITORY / "requirements.txt").read_text("utf-8"),
        whole.read_file("requirements-dev.txt"),
    ]
    for pin in parsed("\n".join(texts)):
        if holds(pin, ENVIRONMENTS[0]):
            assert metadata.version(pin.name) == version_of(pin)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("", "\ndramatiq==2.2.1\n", "dramatiq is not needed"),
        ("", "\ntomli==2.5.0 ; sys_platform == 'win32'\n", "tomli is not needed"),
        (r"^pydantic-core==.*\n( .*\n)*", "", "pydantic-core is not pinned"),
        (r"^colorama==.*\n( .*\n)*", "", "colorama is not pinned"),
        (r"^starlette==.*\n( .*\n)*", "starlette==0.1\n", "starlette==0.1 is not "),
    ],
)
def test_a_wrong_pin_is_found(bake: Bake, old: str, new: str, found: str) -> None:
    """An unneeded or missing pin, here or on another system, and a version outside a constraint."""
    project = bake(cache_backend="none", task_queue="none", scheduler="no")
    text = project.read_file("requirements.txt")
    wrong = re.sub(old, new, text, count=1, flags=re.MULTILINE) if old else text + new
    found_faults = faults(pins_of(wrong), roots_of(project, "requirements.txt"))
    assert [fault for fault in found_faults if fault.startswith(found)]
