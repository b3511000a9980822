from datetime import datetime

from sqlalchemy import JSON, Index, SmallInteger, func
from sqlalchemy.orm import Mapped, mapped_column

from src.db.base import Base, TableNameMixin


class IdempotencyKey(Base, TableNameMixin):
    """The stored response to a request with an idempotency key."""

    id: Mapped[bytes] = mapped_column(primary_key=True)  # a hash of caller, path and key
    fingerprint: Mapped[bytes] = mapped_column()  # a hash of the request
    status: Mapped[int | None] = mapped_column(SmallInteger)  # null until the response is stored
    headers: Mapped[list[tuple[str, str]]] = mapped_column(JSON, default=list)
    body: Mapped[bytes] = mapped_column(default=b"")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_idempotency_key_created_at", "created_at"),)
