"""Create the index for sorting items by name."""

# squawk-ignore-file require-concurrent-index-creation
from collections.abc import Sequence

from alembic import op

revision: str = "4fd07b92c3e6"
down_revision: str | None = "8e41b7c02d95"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_index("ix_item_name_id", "item", ["name", "id"])


def downgrade() -> None:
    op.drop_index("ix_item_name_id", table_name="item")
