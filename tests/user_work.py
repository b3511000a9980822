"""A user's own files in a service, and own lines in files of the template."""

from pathlib import Path

from alembic.script import ScriptDirectory

# The files, with the names of this release.
FILES = {
    "alerts.yml": """\
- expr: rate(tasks_processed_total{outcome!="succeeded"}[5m]) > 0
""",
    "verify.sh": """\
make check-migrations
""",
    "src/db/models/lamp.py": """\
from enum import StrEnum

from sqlalchemy.orm import Mapped, mapped_column

from src.db.base import Base, TableNameMixin, UUIDMixin, text_enum


class Shade(StrEnum):
    GREEN = "green"


class Lamp(Base, UUIDMixin, TableNameMixin):
    __cache_tags__ = ("lamps",)

    shade: Mapped[Shade] = mapped_column(text_enum(Shade))
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}
""",
    "src/tasks/polishing.py": """\
import dramatiq


@dramatiq.actor(queue_name="default", tracked=True)
async def polish_lamps() -> None: ...
""",
    "src/api/v1/endpoints/lamps.py": """\
from fastapi import APIRouter, Request, Response
from sqlalchemy import func, select

from src.api import (
    openapi,
    response_cache,
)
from src.api.accepted import accepted
from src.api.deps import DbSession, ReadSession
from src.db.models.lamp import Lamp, Shade
from src.schemas.task import TaskAccepted
from src.tasks import enqueue
from src.tasks.polishing import polish_lamps

router = APIRouter(prefix="/lamps", route_class=response_cache.CachedRoute)


@router.get("/", dependencies=[response_cache.cached_response(tags=["lamps"])])
async def count_lamps(db: ReadSession) -> int:
    return await db.scalar(select(func.count()).select_from(Lamp)) or 0


@router.post("/", responses=openapi.problems(404))
async def polish(db: DbSession, request: Request, response: Response) -> TaskAccepted:
    db.add(Lamp(shade=Shade.GREEN))
    return accepted(request, response, await enqueue(db, polish_lamps))
""",
    "tests/test_api/test_lamps.py": """\
from httpx import AsyncClient


async def test_lamps(committing_client: AsyncClient) -> None:
    assert (await committing_client.get("/api/v1/lamps/")).json() == 0
    accepted = await committing_client.post("/api/v1/lamps/")
    assert (await committing_client.get("/api/v1/lamps/")).json() == 1
    task = await committing_client.get(accepted.headers["Location"])
    assert task.json()["status"] == "queued"
""",
}
TESTS = [
    "tests/test_api/test_lamps.py",
    "tests/test_models/test_migrations.py::test_downgrade_and_upgrade_result_in_the_models",
]
# What the files said in earlier releases.
EARLIER = {
    "0.5.0": [("make check-migrations", "make migrations")],
    "0.4.0": [
        ('outcome!="succeeded"', 'outcome!="done"'),
        ("tracked=True", "followed=True"),
        ("    openapi,\n    response_cache,\n", "    caching,\n    openapi,\n"),
        ("response_cache.", "caching."),
        ("committing_client", "own_client"),
        ("text_enum(Shade)", 'text_enum(Shade, name="shade")'),
        ('{"version_id_col"', '{**Base.__mapper_args__, "version_id_col"'),
    ],
}
MIGRATION = """\
import sqlalchemy as sa
from alembic import op

revision = "aaaaaaaaaaaa"
down_revision = "{head}"


def upgrade() -> None:
    op.create_table(
        "lamp",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("shade", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lamp")),
        sa.CheckConstraint("shade IN ('green')", name=op.f("ck_lamp_shade")),
    )


def downgrade() -> None:
    op.drop_table("lamp")
"""
ROUTER = """\
from src.api.v1.endpoints import lamps

router.include_router(lamps.router)
"""
# The lines, each behind a line of the template.
LINES = {
    ".env.example": ("# POSTGRES_HOST=localhost\n", "# LAMP_WATTS=40\n"),
    ".gitignore": ("__pycache__/\n", "/lamps/\n"),
    "pyproject.toml": ('    "uvicorn[standard]>=0.54",\n', '    "zeroconf",\n'),
    "src/api/v1/router.py": ("router.include_router(health.router)\n", ROUTER),
    "src/core/config.py": ('    POSTGRES_USER: str = "postgres"\n', "    LAMP_WATTS: int = 40\n"),
}


def files(release: str = "") -> dict[str, str]:
    """Return the user's files, with the names of a release."""
    found = dict(FILES)
    for version, pairs in EARLIER.items():
        for now, then in pairs if release and number(version) >= number(release) else ():
            found = {name: text.replace(now, then) for name, text in found.items()}
    return found


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def add_migration(project: Path) -> None:
    """Add a migration after the head."""
    head = ScriptDirectory(str(project / "alembic")).get_current_head()
    path = project / "alembic/versions/20270101_0000_lamp.py"
    path.write_text(MIGRATION.format(head=head), "utf-8")


def add_lines(project: Path) -> None:
    for name, (line, own) in LINES.items():
        text = (project / name).read_text("utf-8")
        assert text.count(line) == 1, name
        (project / name).write_text(text.replace(line, line + own), "utf-8")


def write(texts: dict[str, str], project: Path) -> None:
    for name, text in texts.items():
        (project / name).write_text(text, "utf-8")
