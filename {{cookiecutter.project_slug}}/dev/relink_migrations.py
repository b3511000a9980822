"""Puts the migrations of an update after yours: `make relink`. It edits only new ones.

The template has the migrations of all selected features in one order. In your project, a migration
that an update adds must follow those that databases may have already, and these must stay as they
are. The last commit has them. Running it again changes nothing. Standard library only.
"""

import argparse
import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from src.utils.text import snake_case

ROOT = Path(__file__).parents[1]
VERSIONS = "alembic/versions"
MODELS = "src/db/models"
KEPT_TABLES = "alembic/kept_tables.txt"
ANSWERS = (".copier-answers.yml", ".cruft.json")  # every update changes one of them

REVISION = re.compile(r"""^revision\b[^=\n]*= *["'](\w+)""", re.MULTILINE)
DOWN_REVISION = re.compile(
    r"""^(down_revision\b[^=\n]*= *)(None|["']\w+["']|\([^)]*\)|\[[^]]*\])""", re.MULTILINE
)
TABLE = re.compile(
    r"""^class\ (\w+)\([^)]*\bTableNameMixin\b  # OrderLine
    |^\ +__tablename__\b[^=\n]*=\ *["'](\w+)
    |\bTable\(\s*["'](\w+)""",
    re.MULTILINE | re.VERBOSE,
)
HEADER = """\
# Tables without a model that `alembic check` and `make migration` leave alone, one per line.
# To drop a table, delete its line, then generate a migration.
"""
CHANGED = """\
{files} differ from the last commit, but the answers do not.
If you did not change them yourself, run `make relink since=HEAD`."""
NO_UPDATE = """\
No update since the last commit: there is nothing to relink.
If you have committed the update, name the commit before it: make relink since=HEAD~1"""


OTHER_COMMITS = """\
Commits after {since} add migrations without an update. A database may have these, so they must not
change. Name the commit before the update, or write `down_revision` of the new ones yourself."""


class RelinkError(Exception):
    """A message for the user."""


@dataclass
class Migration:
    path: Path
    revision: str
    parents: "list[str]"

    def follow(self, parent: str) -> bool:
        """Return whether this changed the file. A merge stays as it is."""
        if len(self.parents) > 1 or self.parents == [parent][: bool(parent)]:
            return False
        text = self.path.read_bytes().decode("utf-8")
        value = f'"{parent}"' if parent else "None"
        self.path.write_bytes(DOWN_REVISION.sub(rf"\g<1>{value}", text).encode("utf-8"))
        return True


def git(*arguments: str) -> str:
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    except FileNotFoundError:
        raise RelinkError("This command compares with the last commit: install git.") from None
    if done.returncode:
        raise RelinkError(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def names(output: str) -> "set[str]":
    return set(filter(None, output.split("\0")))


def changed(since: str, *paths: str, only: str = "a") -> "set[str]":
    """Return the files of the commit that have changed or do not exist."""
    options = ("--name-only", "--relative", "--no-renames", f"--diff-filter={only}", "-z")
    return names(git("diff", *options, since, "--", *paths))


def commits(revisions: str, *paths: str) -> "list[str]":
    """Return the commits that change one of these paths, the newest first."""
    return git("log", "--format=%H", revisions, "--", *paths).split()


def read(path: Path) -> "list[Migration]":
    """Return the migration in the file, if it is one."""
    text = path.read_bytes().decode("utf-8")
    revision, parents = REVISION.search(text), DOWN_REVISION.search(text)
    if not revision:
        return []
    if not parents:
        raise RelinkError(f'{path.name}: write `down_revision = "…"` in one line, and commit it.')
    return [Migration(path, revision[1], re.findall(r"\w+", parents[2].replace("None", "")))]


def saved(name: str) -> str:
    """Store the file in git, in case its text is the user's, and say how to read it."""
    if not (ROOT / name).exists():
        return ""
    return f" Its other text: `git show {git('hash-object', '-w', '--', name)[:12]}`."


def restore(since: str, before: "set[str]") -> None:
    """Undo every change of a migration of the commit."""
    for path in sorted(ROOT.glob(f"{VERSIONS}/*.rej")):
        if name_of(path) not in before:
            path.unlink()
            say(f"Deleted {path.name}: it changes a migration that may be applied.")
    for name in sorted(before & changed(since, VERSIONS)):
        path = ROOT / name
        other = path.read_text("utf-8") if path.exists() else ""
        committed = git("show", f"{since}:./{name}")
        is_moved = DOWN_REVISION.sub("", other) == DOWN_REVISION.sub("", committed)
        hint = "" if is_moved else saved(name)  # the order of migrations is the update's
        git("checkout", "--quiet", since, "--", name)
        say(f"Restored {Path(name).name}: it may be applied, so it must not change.{hint}")


def in_order(migrations: "list[Migration]") -> "list[Migration]":
    """Sort by name, but each migration after those that it follows."""
    waiting = sorted(migrations, key=lambda migration: migration.path.name)
    found = []
    while waiting:
        revisions = {migration.revision for migration in waiting}
        free = (each for each in waiting if revisions.isdisjoint(each.parents))
        found.append(next(free, waiting[0]))
        waiting.remove(found[-1])
    return found


def delete(migration: Migration, reason: str) -> None:
    hint = saved(name_of(migration.path))
    migration.path.unlink()
    say(f"Deleted {migration.path.name}: {reason}.{hint}")


def relink(since: str, before: "set[str]") -> None:
    """Put the new migrations after the head of the others."""
    found = [each for path in sorted(ROOT.glob(f"{VERSIONS}/*.py")) for each in read(path)]
    old = {each.revision: each for each in found if name_of(each.path) in before}
    new = [each for each in found if name_of(each.path) not in before]
    for migration in list(new):
        if migration.revision in old:
            delete(migration, f"{old[migration.revision].path.name} is the same migration")
        elif commits(since, name_of(migration.path)):
            delete(migration, "you had deleted it, for example to merge it with others")
        else:
            continue
        new.remove(migration)
    followed = {parent for migration in old.values() for parent in migration.parents}
    heads = [revision for revision in old if revision not in followed]
    if len(heads) > 1:
        say(f"{' and '.join(heads)} are both heads: run `alembic merge heads -m merge`.")
    head = heads[-1] if heads else ""
    for migration in in_order(new):
        if migration.follow(head):
            say(f"{migration.path.name} now follows {head or 'nothing'}.")
        head = migration.revision


def tables(source: str) -> "set[str]":
    """Return the names of the tables of the models in a module."""
    found = TABLE.findall(source)
    return {snake_case(model) if model else name or other for model, name, other in found}


def keep_tables(since: str) -> None:
    """List the tables whose models are gone, so that Alembic does not drop them."""
    paths = ROOT.glob(f"{MODELS}/**/*.py")
    now = set().union(*(tables(path.read_text("utf-8")) for path in paths))
    before = set().union(
        *(tables(git("show", f"{since}:./{name}")) for name in changed(since, MODELS))
    )
    file = ROOT / KEPT_TABLES
    header = HEADER.splitlines()
    lines = file.read_text("utf-8").splitlines() if file.exists() else header
    gone = sorted(before - now - set(lines))
    kept = [line for line in lines if line not in now] + gone
    if gone:
        say(f"Kept the tables {', '.join(gone)}: {KEPT_TABLES} says how to drop them.")
    if kept == header:
        file.unlink(missing_ok=True)
    elif kept != lines:
        file.write_text("\n".join(kept) + "\n", "utf-8")


def report_files(since: str) -> None:
    """Name the user's edits that are gone, and the files that import deleted modules."""
    deleted = changed(since, ".", only="D")
    for commit in commits(since, *ANSWERS)[:1]:  # the last update
        edits = git("diff", "--name-only", "--relative", "-z", commit, since, "--", ".")
        for name in sorted(deleted & names(edits)):
            say(f"{name} is gone, which you had changed: `git show {since}:./{name}`")
    modules = {name[: -len(".py")].replace("/", ".") for name in deleted if name.endswith(".py")}
    for path in sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py")]):
        gone = sorted(modules & imports(path.read_text("utf-8")))
        if gone:
            say(f"{name_of(path)} imports {gone[0]}, which is gone: change or delete the file.")


def imports(source: str) -> "set[str]":
    """Return the modules that the source may import: `from a import b` may be `a` or `a.b`."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # it has conflict markers
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}", *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the migrations of an update after yours.")
    parser.add_argument(
        "--since", default="", metavar="COMMIT", help="the commit before the update, if not HEAD"
    )
    chosen = parser.parse_args().since
    since = chosen or "HEAD"
    try:
        git("rev-parse", "--verify", since + "^{commit}")
    except RelinkError as error:
        raise RelinkError(f"There is no commit {since} to compare with ({error}).") from None
    if not chosen and not changed(since, *ANSWERS):
        files = ", ".join(sorted(changed(since, VERSIONS)))
        say(CHANGED.format(files=files) if files else NO_UPDATE)
        return
    before = names(git("ls-tree", "-r", "--name-only", "-z", since, "--", f"{VERSIONS}/"))
    if not before:
        raise RelinkError(f"{since} has no file in {VERSIONS}: name a later commit.")
    if set(commits(f"{since}..HEAD", VERSIONS)) - set(commits(f"{since}..HEAD", *ANSWERS)):
        raise RelinkError(OTHER_COMMITS.format(since=since))
    restore(since, before)
    relink(since, before)
    keep_tables(since)
    report_files(since)


if __name__ == "__main__":
    try:
        main()
    except RelinkError as error:
        sys.exit(str(error))
