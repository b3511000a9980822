"""Any module may be imported first: relationships name models of other modules."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.core.config import ROOT

_IMPORTS = """\
from uuid import UUID

from sqlalchemy import Column, ForeignKey, Table
from sqlalchemy.orm import Mapped, mapped_column, relationship

from src.db.base import Base, TableNameMixin, UUIDMixin
"""
# Each model refers to models of modules that are imported after its own.
MODELS = {
    "models/sample_author.py": """
class SampleAuthor(Base, UUIDMixin, TableNameMixin):
    name: Mapped[str] = mapped_column(unique=True)
    books: Mapped[list["SampleBook"]] = relationship(back_populates="author")
""",
    "models/sample_book.py": """
class SampleBook(Base, UUIDMixin, TableNameMixin):
    author_id: Mapped[UUID] = mapped_column(ForeignKey("sample_author.id"))
    author: Mapped["SampleAuthor"] = relationship(back_populates="books")
    labels: Mapped[list["SampleLabel"]] = relationship(secondary="sample_book_label", back_populates="books")
""",
    "models/sample_book_label.py": """
sample_book_label = Table(
    "sample_book_label",
    Base.metadata,
    Column("book_id", ForeignKey("sample_book.id"), primary_key=True),
    Column("label_id", ForeignKey("sample_label.id"), primary_key=True),
)
""",
    "models/sample_shelf/__init__.py": "",
    "models/sample_shelf/label.py": """
class SampleLabel(Base, UUIDMixin, TableNameMixin):
    books: Mapped[list["SampleBook"]] = relationship(secondary="sample_book_label", back_populates="labels")
""",
}
REPOSITORY = """
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from src.db.models.sample_author import SampleAuthor
from src.repositories.base import Repository


class SampleAuthorRepository(Repository[SampleAuthor]):
    model = SampleAuthor
    WITH_BOOKS = select(SampleAuthor).options(selectinload(SampleAuthor.books))  # configures mappers
"""
# Each module is imported in a separate process, which has only third-party modules: all that the
# service imports, since their imports take most of the time.
CHECK = """
import os, pathlib, sys
from contextlib import suppress
from sqlalchemy.orm import configure_mappers

paths = sorted(pathlib.Path("src").rglob("*.py"))
names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
names += ["main", "cli"]
ends = os.pipe()
with open(ends[0]) as read, open(ends[1], "w") as write:
    if os.fork() == 0:
        for name in names:
            with suppress(Exception):
                __import__(name)
        print(*sys.modules, file=write, flush=True)
        os._exit(0)
    write.close()
    for name in read.read().split():
        if name.partition(".")[0] not in {"src", "main", "cli"}:
            with suppress(ImportError):
                __import__(name)
assert "fastapi" in sys.modules and "src" not in sys.modules
failed = []
for name in names:
    if (child := os.fork()) == 0:
        try:
            __import__(name)
            configure_mappers()
            if base := sys.modules.get("src.db.base"):
                assert {"sample_author", "sample_book_label", "sample_label"} <= set(base.Base.metadata.tables)
        except BaseException as error:
            print(name, repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit("Failed: " + " ".join(failed) if failed else 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_any_module_may_be_imported_first(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src")
    for name in ("main.py", "cli.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name, text in MODELS.items():
        path = tmp_path / "src/db" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(_IMPORTS + text)
    (tmp_path / "src/repositories/sample_author.py").write_text(REPOSITORY)

    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-4000:]
