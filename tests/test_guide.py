"""The manuals of a service are true: what they say to write and to run works, and links lead on."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents import FILE, ROUTER, register
from tests.conftest import Bake
from tests.project import BakedProject
from tests.running import LENT, running
from tests.subprocesses import BINARIES, attempt, run

TEST = re.compile(r"^```python\n([^`]*async def test_[^`]*)^```", re.MULTILINE)
OUTPUT = re.compile(r"^```bash\n([^\n]*)\n```\n\n```text\n(.*?)^```", re.DOTALL | re.MULTILINE)
RELATIONSHIP = re.compile(r"^ {4}tags: .*relationship\(.*\n", re.MULTILINE)
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([\w-]+))?\)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
SHORT_FORM = "note_data: NoteCreate, db: DbSession"
LONG_FORM = "db: AsyncSession = Depends(get_db_session)"
# The model of the service's specification: columns in SQLAlchemy's older style.
OLDER_MODEL = """\
from sqlalchemy import Column, String

from src.db.base import Base, TableNameMixin, TimestampMixin, UUIDMixin


class OrderLine(Base, UUIDMixin, TableNameMixin, TimestampMixin):
    name = Column(String, index=True)
"""
BARE = {"example": "no", "cache_backend": "none", "task_queue": "none", "scheduler": "no"}


@pytest.fixture(scope="module")
def project(bake: Bake) -> Iterator[Path]:
    """Yield a service with the resource of the manuals, whose `dev` runs."""
    baked = bake()
    for page in ("docs/api-resource.md", "DEVELOPER-GUIDE.md", "docs/database.md", "docs/http.md"):
        for name, code in FILE.findall(baked.read_file(page)):
            path = baked.path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(code, "utf-8")
    for number, code in enumerate(TEST.findall(baked.read_file("docs/testing.md"))):
        (baked.path / f"tests/test_services/test_manual_{number}.py").write_text(code, "utf-8")
    (baked.path / "src/api/v2/__init__.py").touch()
    relate_notes_to_tags(baked)
    for name in ("notes", "attachments"):
        register(baked.path / ROUTER, name)
    (baked.path / "src/db/models/order_line.py").write_text(OLDER_MODEL, "utf-8")
    run("ruff", "check", "--select", "I", "--fix", "src", cwd=baked.path)  # as `make format` does
    with running(baked.path):
        yield baked.path


def relate_notes_to_tags(project: BakedProject) -> None:
    (line,) = RELATIONSHIP.findall(project.read_file("docs/database.md"))
    model = project.path / "src/db/models/note.py"
    imports = (
        "from sqlalchemy.orm import relationship\nfrom src.db.models.tag import Tag, note_tag\n"
    )
    model.write_text(imports + model.read_text("utf-8") + line, "utf-8")


def test_migration_covers_the_new_models(project: Path) -> None:
    """It goes up, down and up again, and leaves no difference to the models."""
    run("make", "migration", "m=create note", *LENT, cwd=project)
    for command in ("upgrade head", "downgrade -1", "upgrade head", "check"):
        run("alembic", *command.split(), cwd=project)
    (migration,) = project.glob("alembic/versions/*_create_note.py")
    for table in ("note", "tag", "note_tag", "order_line", "invoice"):
        assert f'"{table}"' in migration.read_text("utf-8")
    assert 'CREATE SCHEMA "billing"' in migration.read_text("utf-8")


@pytest.mark.parametrize(
    "command",
    [
        "ruff check",
        "ruff format --check",
        "mypy",
        "lint-imports",
        "pytest -q tests/test_api/test_notes.py tests/test_services tests/test_models --ignore-glob=*autogenerate*",
        "pytest -q tests/test_api/test_commit.py",  # its notes are not those of the manuals
        "pytest -q tests/test_api/test_attachments.py",
    ],
)
def test_result_passes_checks_and_tests(project: Path, command: str) -> None:
    run(*command.split(), cwd=project)


def test_long_form_of_the_session_dependency(project: Path) -> None:
    assert f"`{LONG_FORM}`" in (project / "docs/architecture.md").read_text("utf-8")
    endpoints = project / "src/api/v1/endpoints/notes.py"
    source = endpoints.read_text("utf-8")
    assert SHORT_FORM in source
    imports = (
        "from fastapi import Depends\n"
        "from sqlalchemy.ext.asyncio import AsyncSession\n"
        "from src.api.deps import get_db_session\n"
    )
    changed = source.replace(SHORT_FORM, f"note_data: NoteCreate, {LONG_FORM}")
    endpoints.write_text(imports + changed, "utf-8")
    run("pytest", "-q", "tests/test_api/test_notes.py", cwd=project)


def test_settings_page_shows_real_output(bake: Bake) -> None:
    project = bake()
    activated = {"PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}"}
    outputs = OUTPUT.findall(project.read_file("docs/settings.md"))
    assert len(outputs) == 2
    for command, shown in outputs:
        assert attempt("bash", "-c", command, cwd=project.path, env=activated).stdout == shown


@pytest.mark.parametrize("answers", [{}, BARE], ids=["default", "bare"])
def test_links_lead_somewhere(render: Bake, answers: dict[str, str]) -> None:
    project = render(**answers)
    pages = [project.path / name for name in project.files() if name.suffix == ".md"]
    broken = [
        f"{page.name}: {target}#{anchor}"
        for page in pages
        for target, anchor in LINK.findall(FENCE.sub("", page.read_text("utf-8")))
        if not leads_somewhere(page.parent / target if target else page, anchor)
    ]
    assert broken == []


def leads_somewhere(file: Path, anchor: str) -> bool:
    if not anchor or not file.is_file():
        return file.exists()
    headings = HEADING.findall(file.read_text("utf-8"))
    return anchor in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
