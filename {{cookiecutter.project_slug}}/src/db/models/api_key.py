from datetime import datetime

from sqlalchemy import ARRAY, Index, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from src.db.base import Base, TableNameMixin


class ApiKey(Base, TableNameMixin):
    """A key of a program that calls this service. The row of a revoked key stays, for audits."""

    id: Mapped[str] = mapped_column(Text, primary_key=True)  # public: a part of the key
    name: Mapped[str] = mapped_column(Text)
    secret_hash: Mapped[bytes] = mapped_column()
    # Of the secret before the last rotation, for its grace period.
    previous_hash: Mapped[bytes | None]
    previous_expires_at: Mapped[datetime | None]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_api_key_name", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
    )
