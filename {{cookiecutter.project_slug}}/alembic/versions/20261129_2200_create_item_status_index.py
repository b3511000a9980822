"""Create the index for pages of items with one status."""

from collections.abc import Sequence

from alembic import op

revision: str = "e1a60d7f4b28"
down_revision: str | None = "7d2c81f5e0b9"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.create_index("ix_item_status_id", "item", ["status", "id"], postgresql_concurrently=True)


def downgrade() -> None:
    op.drop_index("ix_item_status_id", table_name="item")
