import shutil
from pathlib import Path

import pytest

from dev import migration_lint
from src.core.config import ROOT

MIGRATION = """
import sqlalchemy as sa
from alembic import op
{comment}
revision, down_revision, branch_labels, depends_on = "{name}", {down!r}, None, None
def upgrade():
    {change}
"""
TABLE = 'op.create_table("note", sa.Column("text", sa.Text()))'
INDEX = 'op.create_index("ix_note_text", "note", ["text"])'
CONCURRENTLY = INDEX.replace("])", "], postgresql_concurrently=True)")
READ = 'op.get_bind().execute(sa.text("SELECT 1")).one()'


@pytest.mark.parametrize(
    ("change", "comment", "status"),
    [
        (INDEX, "", 1),
        (INDEX, "# squawk-ignore-file require-concurrent-index-creation", 0),
        (f"with op.get_context().autocommit_block():\n        {CONCURRENTLY}", "", 0),
        ('op.add_column("note", sa.Column("size", sa.BigInteger(), nullable=False))', "", 1),
        ('op.add_column("note", sa.Column("size", sa.BigInteger()))', "", 0),
        (READ, "", 0),  # it needs a database
    ],
)
def test_unsafe_changes_of_existing_tables_are_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    change: str,
    comment: str,
    status: int,
) -> None:
    versions = tmp_path / "alembic/versions"
    versions.mkdir(parents=True)
    for name in ("alembic.ini", "alembic/env.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    first = MIGRATION.format(comment="", name="1", down=None, change=f"{TABLE}; {INDEX}")
    (versions / "first.py").write_text(first)
    second = MIGRATION.format(comment=comment, name="2", down="1", change=change)
    (versions / "second.py").write_text(second)
    monkeypatch.setattr(migration_lint, "ROOT", tmp_path)

    assert migration_lint.main() == status

    captured = capfd.readouterr()
    assert ("second.sql" in captured.out) is (status == 1)
    assert ("is not checked" in captured.err) is (change == READ)
