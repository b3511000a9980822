"""Changed answers: a project with its own edits, migration and rows is updated again and again.

After each step, the project equals a new one with these answers, except for what is the user's, and
for its migrations: those that were there are unchanged, and new ones follow them.
"""

import asyncio
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path

from alembic.script import ScriptDirectory
from cruft._commands.update import _apply_project_updates

from scripts.tables import choices_of
from tests import boot, rows
from tests.conftest import Bake
from tests.project import REPOSITORY, SERVICE, BakedProject, Terminal, files_under
from tests.running import free_port
from tests.servers import serving
from tests.subprocesses import attempt, run
from tests.variants import OTHERS, STRUCTURAL, Answers

CREATED = re.compile(r'op\.create_table\(\s*"(\w+)"')
VERSIONS = Path("alembic/versions")
KEPT = Path("alembic/kept_tables.txt")
CACHES = {"__pycache__", ".ruff_cache"}
ANSWERS = {".copier-answers.yml", ".cruft.json"}
MINE = {
    Path("src/db/models/price.py"): """\
from sqlalchemy.orm import Mapped

from src.db.base import Base, TableNameMixin, UUIDMixin


class Price(Base, UUIDMixin, TableNameMixin):
    amount: Mapped[int]
""",
    Path("src/tasks/mine.py"): "# In a folder that may be deselected.\n",
}
MIGRATION = """\
import sqlalchemy as sa
from alembic import op

revision = "aaaaaaaaaaaa"
down_revision = "{head}"


def upgrade() -> None:
    id_ = sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False)
    key = sa.PrimaryKeyConstraint("id", name="pk_price")
    op.create_table("price", id_, sa.Column("amount", sa.Integer(), nullable=False), key)


def downgrade() -> None:
    op.drop_table("price")
"""
MIGRATE = """
from alembic import command
from alembic.config import Config
config = Config("alembic.ini")
command.upgrade(config, "head")
command.check(config)
"""
RELINK = (sys.executable, "-m", "dev.relink_migrations")
DEFAULTS = {question: choices_of(question)[0] for question in [*STRUCTURAL, *OTHERS]}


def circuit(question: str) -> list[Answers]:
    """Return steps from the default and back, in which each pair of answers is once neighbours."""
    words = choices_of(question)
    left = {word: [other for other in words if other != word] for word in words}
    waiting, found = words[:1], []
    while waiting:
        others = left[waiting[-1]]
        if others:
            waiting.append(others.pop())
        else:
            found.append({question: waiting.pop()})
    return found[-2::-1]


def steps() -> Iterator[Answers]:
    """Change one answer that adds or deletes files in each step, and one that changes text."""
    nothing: Answers = {}
    turns = zip_longest(*map(circuit, STRUCTURAL), fillvalue=nothing)
    files = [step for turn in turns for step in turn if step]
    texts = [step for question in OTHERS for step in circuit(question)]
    for step, text in zip_longest(files, texts, fillvalue=nothing):
        yield step | text


def edited(files: dict[Path, bytes]) -> dict[Path, bytes]:
    """Edit two files, and add some."""
    ignored, readme = Path(".gitignore"), Path("README.md")
    edits = {ignored: b"/mine/\n" + files[ignored], readme: b"<!-- Ours. -->\n" + files[readme]}
    return files | edits | {path: text.encode() for path, text in MINE.items()}


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the files of the user and the template, not those of tools."""
    ours = [file for file in files_under(folder) if CACHES.isdisjoint(file.parts)]
    return {file: (folder / file).read_bytes() for file in ours if file.name not in ANSWERS}


def migrations(files: dict[Path, bytes]) -> dict[Path, bytes]:
    return {file: text for file, text in files.items() if file.parent == VERSIONS}


def tables(files: dict[Path, bytes]) -> set[str]:
    return {name for text in migrations(files).values() for name in CREATED.findall(text.decode())}


def chain(project: Path) -> list[str]:
    """Return the revisions from the head to the first. There is one head."""
    script = ScriptDirectory(str(project / "alembic"))
    return [each.revision for each in script.walk_revisions("base", "head")]


@dataclass
class Project:
    """A project of cruft, or, with a repository of the template, of Copier."""

    terminal: Terminal
    render: Bake
    answers: Answers
    template: Path | None = None
    rows: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = self.terminal.work / "desk"
        if self.template:
            self.copier("copy", self.answers, self.template, self.path)
        for file, text in edited(contents(self.fresh())).items():
            (self.path / file).parent.mkdir(parents=True, exist_ok=True)
            (self.path / file).write_bytes(text)
        own = MIGRATION.format(head=chain(self.path)[0])
        (self.path / VERSIONS / "20270101_0000_price.py").write_text(own, "utf-8")
        if not self.template:
            (self.path / ".cruft.json").write_text("{}", "utf-8")
        self.terminal.git(self.path, "init", "--quiet")
        self.commit()

    def commit(self) -> None:
        self.terminal.git(self.path, "add", "--all")
        self.terminal.git(self.path, "commit", "--quiet", "--message=step")

    def fresh(self) -> Path:
        return self.render(project_slug="desk", **self.answers).path

    def copier(self, command: str, answers: Answers, *folders: Path) -> None:
        data = [f"--data={question}={answer}" for question, answer in answers.items()]
        options = ["--trust", "--defaults", "--data=project_slug=desk", *data]
        done = self.terminal.run(sys.executable, "-m", "copier", command, *options, *folders)
        assert done.returncode == 0, done.stderr

    def change(self, changed: Answers) -> None:
        """Change answers, and compare the project with a new one."""
        before, revisions, old = contents(self.path), chain(self.path), self.fresh()
        self.answers = self.answers | changed
        if self.template:
            self.copier("update", changed, self.path)
        else:  # what `cruft update` does after it has rendered both
            _apply_project_updates(old, self.fresh(), self.path, False, True, False)
            (self.path / ".cruft.json").write_text(json.dumps(self.answers), "utf-8")
            self.relink()
        after, fresh = contents(self.path), contents(self.fresh())
        kept = after.pop(KEPT, b"").decode().splitlines()[2:]
        assert set(kept) >= tables(before) - tables(fresh) - {"price"}, changed
        assert not set(kept) & tables(fresh), changed
        assert migrations(before).items() <= migrations(after).items(), changed
        assert chain(self.path)[-len(revisions) :] == revisions, changed
        ours = {file: text for file, text in after.items() if file not in migrations(after)}
        assert ours | migrations(fresh) == edited(fresh), changed
        self.commit()

    def relink(self, *options: str) -> str:
        return run(*RELINK, *options, cwd=self.path)

    def write_migration(self, message: str, url: str) -> None:
        command = [sys.executable, "-m", "dev.migration", message]
        run(*command, cwd=self.path, env={"DATABASE_URL": url})

    def migrate(self, url: str) -> None:
        """Migrate a database with rows, of which none is lost."""
        run(sys.executable, "-c", MIGRATE, cwd=self.path, env={"DATABASE_URL": url})
        now = asyncio.run(rows.fill(url.replace("postgresql:", "postgresql+asyncpg:")))
        assert self.rows.items() <= now.items()
        self.rows = now


def test_each_answer_can_change_to_each_other(render: Bake, terminal: Terminal) -> None:
    """With cruft: it applies a patch. Copier renders all files again."""
    project = Project(terminal, render, DEFAULTS)
    for step in steps():
        project.change(step)


def test_relinking_loses_no_work(render: Bake, terminal: Terminal) -> None:
    """A merge stays, and git has the text of a migration that was edited but not committed."""
    project = Project(terminal, render, DEFAULTS)
    mine = project.path / VERSIONS / "20270101_0000_price.py"
    before = mine.read_text("utf-8")
    other = before.replace("aaaaaaaaaaaa", "bbbbbbbbbbbb")
    mine.with_name("20270102_0000_branch.py").write_text(other, "utf-8")
    project.commit()
    merge = 'revision = "cccccccccccc"\ndown_revision = ("aaaaaaaaaaaa", "bbbbbbbbbbbb")\n'
    mine.with_name("20270103_0000_merge.py").write_text(merge, "utf-8")
    mine.write_text(before + "# not applied\n", "utf-8")
    (project.path / ".cruft.json").write_text("{ }", "utf-8")

    said = project.relink()

    assert mine.read_text("utf-8") == before
    [command] = re.findall(r"`git (show \w+)`", said)
    assert "# not applied" in terminal.git(project.path, *command.split())
    assert mine.with_name("20270103_0000_merge.py").read_text("utf-8") == merge


def test_relinking_says_what_the_user_must_know(render: Bake, terminal: Terminal) -> None:
    """A deleted migration that returns, deleted files with edits, and imports of deleted modules."""
    project = Project(terminal, render, DEFAULTS)
    answers = project.path / ".cruft.json"
    squashed = next((project.path / VERSIONS).glob("*_create_scheduler.py"))
    text = squashed.read_text("utf-8")
    squashed.unlink()
    edited, importing = project.path / "src/core/trace.py", project.path / "src/core/mine.py"
    edited.write_text(edited.read_text("utf-8") + "# mine\n", "utf-8")
    importing.write_text("from src.core import shutdown, trace\n", "utf-8")
    project.commit()
    squashed.write_text(text, "utf-8")
    edited.unlink()

    assert project.relink().startswith("No update since the last commit")
    answers.write_text("{ }", "utf-8")
    said = project.relink()

    assert not squashed.exists()
    assert f"Deleted {squashed.name}: you had deleted it" in said
    assert "src/core/trace.py is gone, which you had changed: `git show HEAD:./src" in said
    assert "src/core/mine.py imports src.core.trace, which is gone" in said


def test_relinking_without_changed_answers_names_changed_migrations(
    render: Bake, terminal: Terminal
) -> None:
    """As after `copier recopy`, or an edit of the user's own."""
    project = Project(terminal, render, DEFAULTS)
    mine = project.path / VERSIONS / "20270101_0000_price.py"
    before = mine.read_text("utf-8")
    mine.write_text(before + "# changed\n", "utf-8")

    assert "make relink since=HEAD" in project.relink()
    assert mine.read_text("utf-8") != before
    project.relink("--since", "HEAD")
    assert mine.read_text("utf-8") == before


def test_relinking_refuses_commits_that_are_not_the_update(
    render: Bake, terminal: Terminal
) -> None:
    """A migration of a later commit may be applied."""
    project = Project(terminal, render, DEFAULTS)
    mine = project.path / VERSIONS / "20270101_0000_price.py"
    later = mine.read_text("utf-8").replace("aaaaaaaaaaaa", "bbbbbbbbbbbb")
    (project.path / ".cruft.json").write_text("{ }", "utf-8")
    project.commit()
    mine.with_name("20270102_0000_later.py").write_text(later, "utf-8")
    project.commit()

    done = attempt(*RELINK, "--since", "HEAD~2", cwd=project.path)

    assert done.returncode == 1
    assert "Commits after HEAD~2 add migrations without an update." in done.stdout


def test_migrations_follow_each_other_in_the_order_of_their_names() -> None:
    """`make relink` sorts several new ones by name."""
    script = ScriptDirectory(str(REPOSITORY / SERVICE / "alembic"))
    names = [Path(each.path).name for each in script.walk_revisions("base", "head")]
    assert names == sorted(names, reverse=True)


COMMON = {"alembic_version", "api_key", "idempotency_key", "price"}  # tables with any answers
ALL_IN_REDIS = {
    "cache_backend": "redis",
    "example": "yes",
    "scheduler": "yes",
    "task_queue": "redis",
    "auth": "users",
}
STEPS = [
    {"task_queue": "redis", "cache_backend": "file", "auth": "users"},
    {"scheduler": "yes", "example": "no", "auth": "oidc", "deployment": "kubernetes"},
    {"scheduler": "no", "task_queue": "none", "auth": "keys", "ci_provider": "gitlab"},
]


def test_rows_survive_changed_answers(
    render: Bake, own_template: Path, terminal: Terminal, tmp_path: Path
) -> None:
    """With Copier. Features are added, dropped and added again, the last time without tables."""
    terminal.commit(own_template, "template")
    first = DEFAULTS | {"task_queue": "none", "scheduler": "no"}
    project = Project(terminal, render, first, own_template)
    with ExitStack() as stack:
        url_of = cache(lambda name: stack.enter_context(serving(name)))
        env = boot.production(ALL_IN_REDIS, url_of, "desk", free_port())
        url = env["DATABASE_URL"]
        run(sys.executable, "cli.py", "db", "init", cwd=project.path, env={"DATABASE_URL": url})
        project.migrate(url)
        for step in STEPS:
            project.change(step)
            project.migrate(url)
        added = {"item", "item_import", "login_session", "outbox_message", "scheduler_run"}
        assert added <= set(project.rows)
        own = ("-q", "-p", "no:cacheprovider", "tests/test_models/test_migrations.py")
        run("pytest", *own, cwd=project.path)

        (project.path / KEPT).unlink()
        project.write_migration("Drop tables", url)
        project.rows = dict.fromkeys(COMMON, 1)
        project.migrate(url)
        assert set(project.rows) == COMMON
        project.commit()
        project.change(ALL_IN_REDIS)
        project.write_migration("Create tables", url)
        project.migrate(url)

        log = tmp_path / "boot.log"
        service = BakedProject(project.path, project.answers)
        with boot.booted(service, Path(sys.executable), env, log) as client:
            boot.smoke(client, project.answers, log)


def test_the_page_s_commands_for_cruft(own_template: Path, terminal: Terminal) -> None:
    """The whole of `cruft update`, which renders the old and the new answers."""
    page = (REPOSITORY / "docs/updating.md").read_text("utf-8").partition("## Change an answer")[2]
    update, relink = re.findall(r"^(?:uvx (?=cruft)|(?=make relink$))(.*)$", page, re.MULTILINE)
    terminal.commit(own_template, "template")
    terminal.cruft(
        "create", own_template, "--no-input", "--extra-context", '{"project_slug":"desk"}'
    )
    project = terminal.work / "desk"
    terminal.commit(project, "project")
    before = migrations(contents(project))

    done = terminal.run(sys.executable, "-m", *shlex.split(update), "--project-dir", project)
    assert done.returncode == 0, done.stderr
    done = terminal.run(*shlex.split(relink), "-C", project)

    assert "Kept the tables scheduler_job, scheduler_lease, scheduler_run" in done.stdout
    assert migrations(contents(project)) == before
    assert not (project / "src/schedulers").exists()
