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

from src.db.base import Base, TableNameMixin, TimestampMixin, UUIDMixin
"""
# Each model refers to models of modules that are imported after its own.
MODELS = {
    "models/author.py": """
class Author(Base, UUIDMixin, TableNameMixin):
    name: Mapped[str] = mapped_column(unique=True)
    books: Mapped[list["Book"]] = relationship(back_populates="author")
""",
    "models/book.py": """
class Book(Base, UUIDMixin, TableNameMixin):
    author_id: Mapped[UUID] = mapped_column(ForeignKey("author.id"))
    author: Mapped["Author"] = relationship(back_populates="books")
    labels: Mapped[list["Label"]] = relationship(secondary="book_label", back_populates="books")
""",
    "models/book_label.py": """
book_label = Table(
    "book_label",
    Base.metadata,
    Column("book_id", ForeignKey("book.id"), primary_key=True),
    Column("label_id", ForeignKey("label.id"), primary_key=True),
)
""",
    "models/label.py": """
class Label(Base, UUIDMixin, TableNameMixin):
    books: Mapped[list["Book"]] = relationship(secondary="book_label", back_populates="labels")
""",
    "models/staff/__init__.py": """
class Person(Base, UUIDMixin, TableNameMixin, TimestampMixin):
    kind: Mapped[str]
    manager_id: Mapped[UUID | None] = mapped_column(ForeignKey("person.id"))
    manager: Mapped["Person | None"] = relationship(remote_side="Person.id")
    desks: Mapped[list["Desk"]] = relationship()
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}
""",
    "models/staff/clerk.py": """
from src.db.models.staff import Person


class Clerk(Person):
    id: Mapped[UUID] = mapped_column(ForeignKey("person.id"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "clerk"}


class Desk(Base, UUIDMixin, TableNameMixin):
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"))
""",
}
# `aliased` and `selectinload` configure all mappers.
REPOSITORY = """
from sqlalchemy import select
from sqlalchemy.orm import aliased, selectinload

from src.db.models.author import Author
from src.db.models.staff.clerk import Clerk
from src.repositories.base import M, Repository


class SharedQueries(Repository[M]):
    pass


class AuthorRepository(SharedQueries[Author]):
    model = Author
    WITH_BOOKS = select(Author).options(selectinload(Author.books))
    OTHER = aliased(Author)


class ClerkRepository(Repository[Clerk]):
    model = Clerk
"""
# Each module is imported in a separate process, which has only third-party modules.
CHECK = """
import os, pathlib, sys
import alembic, asyncpg, fastapi, sqlalchemy.ext.asyncio, structlog
from sqlalchemy.orm import configure_mappers

paths = sorted(pathlib.Path("src").rglob("*.py"))
names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
failed = []
for name in ["main", "cli", *names]:
    if (child := os.fork()) == 0:
        try:
            __import__(name)
            configure_mappers()
            if base := sys.modules.get("src.db.base"):
                assert {"author", "book_label", "desk"} <= set(base.Base.metadata.tables)
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
    (tmp_path / "src/repositories/author.py").write_text(REPOSITORY)

    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-4000:]
