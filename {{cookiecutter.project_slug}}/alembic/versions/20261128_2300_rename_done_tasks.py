"""Rename the status `done` of tasks to `succeeded`."""

# squawk-ignore-file ban-drop-constraint, constraint-missing-not-valid
from collections.abc import Sequence

from alembic import op

revision: str = "8e41b7c02d95"
down_revision: str | None = "2d95f3c6e871"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.drop_constraint(op.f("ck_task_status"), "task")
    op.execute("UPDATE task SET status = 'succeeded' WHERE status = 'done'")
    op.create_check_constraint(
        op.f("ck_task_status"), "task", "status IN ('queued', 'running', 'succeeded', 'failed')"
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_task_status"), "task")
    op.execute("UPDATE task SET status = 'done' WHERE status = 'succeeded'")
    op.create_check_constraint(
        op.f("ck_task_status"), "task", "status IN ('queued', 'running', 'done', 'failed')"
    )
