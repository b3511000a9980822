"""Checks migrations for changes that block or break a running service: `make check-migrations`.

Squawk reads the SQL of each migration. To allow a change, write a comment into the migration, with
the names of the rules: `# squawk-ignore-file ban-drop-column`.
"""

import re
import subprocess
import sys
import sysconfig
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory

from src.core.config import ROOT

SQUAWK = Path(sysconfig.get_path("scripts"), "squawk")
COMMENT = re.compile(r"^# (squawk-ignore-file .*)", re.MULTILINE)
EXCLUDED = (
    "require-lock-timeout",  # alembic/env.py sets it
    "require-statement-timeout",  # a migration may take long, if it blocks no one
    "prefer-bigint-over-int",  # these are about style
    "prefer-bigint-over-smallint",
    "prefer-identity",
    "prefer-robust-stmts",
    "prefer-text-field",
)


def sql_of(script: Script) -> str:
    sql = StringIO()
    config = Config(ROOT / "alembic.ini", output_buffer=sql)
    command.upgrade(config, f"{script.down_revision or 'base'}:{script.revision}", sql=True)
    comments = COMMENT.findall(Path(script.path).read_text(encoding="utf-8"))
    return "".join(f"-- {each}\n" for each in comments) + sql.getvalue()


def main() -> int:
    revisions = ScriptDirectory.from_config(Config(ROOT / "alembic.ini")).walk_revisions()
    with TemporaryDirectory() as folder:
        for script in revisions:
            if script.is_merge_point:
                continue
            try:
                sql = sql_of(script)
            except Exception as error:  # noqa: BLE001 - it needs the rows of a database
                sys.stderr.write(f"{script.path} is not checked: {error}\n")
                continue
            Path(folder, Path(script.path).stem).with_suffix(".sql").write_text(sql, "utf-8")
        options = [f"--exclude={','.join(EXCLUDED)}", "--pg-version=18"]
        return subprocess.run([SQUAWK, *options, f"{folder}/*.sql"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
