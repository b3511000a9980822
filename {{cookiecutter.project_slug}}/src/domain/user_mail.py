"""What the service writes to users."""

from enum import StrEnum

from src.domain.errors import InvalidValueError


class UserMail(StrEnum):
    """The values are names of templates in `src/mail`, except of SIGN_UP, which has two."""

    SIGN_UP = "sign_up"
    RESET_PASSWORD = "reset_password"  # noqa: S105 - a template
    CHANGE_EMAIL = "change_email"
    EMAIL_CHANGE_REQUESTED = "email_change_requested"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - a template


class InvalidTokenError(InvalidValueError):
    """One text for every reason, so that no one learns anything about a token."""

    code = "invalid-token"
    title = "Invalid token"
    message = "The token is invalid, used or expired. Request another one."
