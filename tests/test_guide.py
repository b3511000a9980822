"""The developer guide's tutorial is true: its files, put where it says, give a working resource."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Bake
from tests.running import running
from tests.subprocesses import run

FILE = re.compile(
    r"`((?:src|tests)/[\w/]+\.py)`[^\n]*\n\n```python\n(.*?)^```", re.DOTALL | re.MULTILINE
)
LONGER_SPELLING = re.compile(r"longer spelling.*?```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# What the specification of the service shows as a model: columns in the older way.
OLDER_MODEL = """\
from sqlalchemy import Column, String

from src.db.base import Base, TableNameMixin, TimestampMixin, UUIDMixin


class OrderLine(Base, UUIDMixin, TableNameMixin, TimestampMixin):
    name = Column(String, index=True)
"""


@pytest.fixture(scope="module")
def project(bake: Bake) -> Iterator[Path]:
    """Yield a service with the tutorial's resource, whose `dev` runs."""
    baked = bake()
    guide = baked.read_file("DEVELOPER-GUIDE.md")
    for name, code in FILE.findall(tutorial(guide)):
        (baked.path / name).write_text(code, "utf-8")
    (baked.path / "src/db/models/order_line.py").write_text(OLDER_MODEL, "utf-8")
    with running(baked.path):
        yield baked.path


def tutorial(guide: str) -> str:
    return guide[guide.index("### A resource, end to end") : guide.index("### Errors")]


def test_the_migration_finds_the_models(project: Path) -> None:
    """Models need no registration; the migration goes up, down and up again, and then is whole."""
    run("alembic", "revision", "--autogenerate", "-m", "create_note", cwd=project)
    for command in ("upgrade head", "downgrade -1", "upgrade head", "check"):
        run("alembic", *command.split(), cwd=project)
    (migration,) = project.glob("alembic/versions/*_create_note.py")
    assert '"note"' in migration.read_text("utf-8")
    assert '"order_line"' in migration.read_text("utf-8")


@pytest.mark.parametrize(
    "command",
    [
        "ruff check",
        "ruff format --check",
        "mypy",
        "lint-imports",
        "pytest -q tests/test_api/test_notes.py tests/test_services/test_note.py tests/test_models",
    ],
)
def test_the_result_is_clean_and_tested(project: Path, command: str) -> None:
    run(*command.split(), cwd=project)


def test_the_longer_spelling_of_the_session_works_as_well(project: Path) -> None:
    """`db: AsyncSession = Depends(get_db_session)` takes the place of the alias."""
    guide = (project / "DEVELOPER-GUIDE.md").read_text("utf-8")
    longer = LONGER_SPELLING.search(tutorial(guide))
    assert longer is not None
    imports, _, endpoint = longer[1].partition("\n\n\n")
    path = project / "src/api/v1/endpoints/notes.py"
    source = path.read_text("utf-8")
    start, end = source.index("@router.post"), source.index("@router.get")
    changed = f"{imports}\n{source[:start]}{endpoint}\n\n{source[end:]}"
    path.write_text(changed, "utf-8")
    run(*["ruff", "check", "--ignore", "I001,F401,RUF100", "src"], cwd=project)
    run(*["pytest", "-q", "tests/test_api/test_notes.py"], cwd=project)
