"""Accounts, the sessions of users who are logged in, and tokens that e-mails contain.

Tokens are stored as hashes only: see `src/auth/tokens.py`.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Computed, ForeignKey, Index, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from src.db.base import Base, TableNameMixin, TimestampMixin, UUIDMixin
from src.domain.principal import Role
from src.domain.user import TokenPurpose


class User(Base, UUIDMixin, TimestampMixin):
    """An account. It can log in if it has a password, is verified and is not disabled."""

    __tablename__ = "users"  # PostgreSQL reserves `user`

    email: Mapped[str] = mapped_column(Text)  # as the user wrote it
    # Identifies the account. E-mail addresses are ASCII: see `src/schemas/user.py`.
    email_key: Mapped[str] = mapped_column(
        Text, Computed('lower(email COLLATE "C")', persisted=True), unique=True
    )
    # None until the first verification. Only the owner of the mailbox sets a password.
    password_hash: Mapped[str | None] = mapped_column(Text)
    role: Mapped[Role] = mapped_column(default=Role.MEMBER)
    verified_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("length(email) <= 254", name="email_length"),)


class LoginSession(Base, UUIDMixin, TableNameMixin):
    """A log-in of a user. It ends by log-out, after a time without use, or at a certain age."""

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    client: Mapped[str] = mapped_column(Text)  # the start of the header User-Agent
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index("ix_login_session_user_id", "user_id"),
        Index("ix_login_session_last_used_at", "last_used_at"),
    )


class OneTimeToken(Base, UUIDMixin, TableNameMixin):
    """A token of an e-mail, which proves that the user reads this mailbox."""

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    purpose: Mapped[TokenPurpose] = mapped_column()
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    new_email: Mapped[str | None] = mapped_column(Text)  # for the purpose CHANGE_EMAIL
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_one_time_token_user_id", "user_id"),
        Index("ix_one_time_token_expires_at", "expires_at"),
    )


class LoginThrottle(Base, TableNameMixin):
    """Counts attempts, by address or account. The key is a hash: the account need not exist."""

    id: Mapped[bytes] = mapped_column(primary_key=True)
    attempts: Mapped[int]
    blocked_until: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]

    __table_args__ = (Index("ix_login_throttle_expires_at", "expires_at"),)
