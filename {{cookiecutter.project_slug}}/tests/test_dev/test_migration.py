"""`make migration`."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev import migration
from src.core.config import ROOT, get_settings
from tests.fixtures.database import TEMPLATE_URL


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the folder of migrations of a copy of this service."""
    for name in ("alembic.ini", "alembic"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(migration, "ROOT", tmp_path)
    monkeypatch.setenv("DATABASE_URL", os.environ[TEMPLATE_URL])
    monkeypatch.setenv("LOG_LEVEL", "INFO")  # to restore it afterwards
    get_settings.cache_clear()
    yield tmp_path / "alembic/versions"
    monkeypatch.undo()
    get_settings.cache_clear()
    logging.getLogger().handlers = []


def test_a_migration_is_written_and_named(
    versions: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(versions)
    versions.mkdir()

    migration.main('Create "all" tables')

    (file,) = versions.glob("*.py")
    assert file.name.endswith("_create_all_tables.py")
    assert 'op.create_table(\n        "idempotency_key",' in file.read_text("utf-8")
    assert str(file) in capfd.readouterr().out


def test_no_empty_migration_is_written(versions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(versions.iterdir())

    migration.main("nothing")

    assert list(versions.iterdir()) == before
    assert "no migration is needed" in capsys.readouterr().out


def test_a_description_is_required() -> None:
    with pytest.raises(SystemExit, match='make migration m="Add price"'):
        migration.main("")
