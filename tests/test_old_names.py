"""The tables of old names in the changelog are true and complete, and `old_names.py` uses them."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from scripts import old_names
from scripts.old_names import Name
from tests.project import REPOSITORY, SERVICE
from tests.releases import extract_service, releases
from tests.subprocesses import attempt

TODAY = REPOSITORY / SERVICE
NAMES = old_names.names(old_names.CHANGELOG.read_text("utf-8"))
SPAN = re.compile(r"`([^`]+)`")
LABEL = re.compile(r'\w+="(\w+)"')
# What users of a service refer to, by the file that declares it, and how they refer to it.
DECLARED = [
    ("src/**/*.py", r'(?:log\.\w+\(|event =)\s*"([a-z]\w+)"', 'event="{}"'),
    ("src/**/*.py", r'(?:Counter|Gauge|Histogram|_family)\(\s*"(\w+)"', "{}"),
    ("tests/conftest.py", r"@pytest.fixture.*\n(?:async )?def ([a-z]\w+)", "{}"),
    ("tests/fixtures/*.py", r"@pytest.fixture.*\n(?:async )?def ([a-z]\w+)", "{}"),
    (".env.example", r"^#? ?([A-Z][A-Z_]+)=", "{}"),
    ("Makefile", r"^([a-z-]+):.*##", "make {}"),
]


@pytest.fixture(scope="module", params=releases())
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def old(release: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the service of the release, with all features."""
    return extract_service(release, tmp_path_factory.mktemp(release))


@cache
def everything(service: Path) -> str:
    """Return all that the script searches, with paths and the full names of definitions."""
    texts = []
    for file in old_names.files(service):
        path = file.relative_to(service)
        texts += [str(path), *old_names.searched(file)]
        if path.suffix == ".py":
            module = ".".join(path.with_suffix("").parts)
            nodes = ast.parse(file.read_bytes()).body
            texts += [f"{module}.{node.name}" for node in nodes if hasattr(node, "name")]
    return "\n".join(texts)


def occurs(name: str, service: Path) -> bool:
    """Say whether a name occurs; of a label such as `outcome="done"`, the code has the value."""
    label = LABEL.fullmatch(name)
    if label:
        return f'"{label[1]}"' in everything(service)
    return bool(Name("", name, "").pattern.search(everything(service)))


def declared(service: Path) -> set[str]:
    """Return the modules, log events, metrics, fixtures, settings and targets of a service."""
    found = {
        path.relative_to(service).as_posix().removesuffix(".py")
        for folder in ("src", "dev")
        for path in (service / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    for files, pattern, reference in DECLARED:
        for path in service.glob(files):
            matches = re.findall(pattern, path.read_text("utf-8"), re.MULTILINE)
            found |= {reference.format(each) for each in matches}
    return found


def test_each_old_name_is_of_its_release(release: str, old: Path) -> None:
    names = [each.old for each in NAMES if release == f"{each.release}.0"]
    assert [name for name in names if not occurs(name, old)] == []


def test_a_new_project_has_no_old_name() -> None:
    assert list(old_names.findings(TODAY, NAMES)) == []


def test_each_new_name_exists() -> None:
    names = [span for name in NAMES for span in SPAN.findall(name.now)]
    assert [name for name in names if not occurs(name, TODAY)] == []


def test_no_name_is_missing(old: Path) -> None:
    """What a release declared is still declared, or in a table."""
    gone = sorted(declared(old) - declared(TODAY))
    assert [each for each in gone if not any(name.pattern.search(each) for name in NAMES)] == []


def test_the_script_reports_file_line_and_new_name(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(
        '\nexpr: rate(tasks_total{outcome!="done"}[5m])\n', "utf-8"
    )
    (tmp_path / "lamps.py").write_text(
        "from src.api import (\n    caching,\n    openapi,\n)\n", "utf-8"
    )
    (tmp_path / "conflict.py").write_text("<<<<<<< ours\n    followed=True,\n", "utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG own_client")
    script = REPOSITORY / "scripts/old_names.py"

    done = attempt("python", script, tmp_path, cwd=tmp_path)

    assert (done.returncode, done.stdout.splitlines()) == (
        1,
        [
            'alerts.yml:2: outcome="done" is now outcome="succeeded"',
            "conflict.py:2: followed=True is now tracked=True",
            "lamps.py:2: src.api.caching is now src.api.response_cache",
        ],
    )
    done = attempt("python", script, tmp_path / "lamp", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.endswith("lamp is not a folder.\n")
