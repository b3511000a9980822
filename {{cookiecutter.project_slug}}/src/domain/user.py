"""Rules and errors of accounts."""

from enum import StrEnum

from src.domain.errors import (
    ConflictError,
    ForbiddenError,
    InvalidValueError,
    NotFoundError,
    UnauthenticatedError,
)


class TokenPurpose(StrEnum):
    VERIFY_EMAIL = "verify-email"
    RESET_PASSWORD = "reset-password"  # noqa: S105 - a purpose
    CHANGE_EMAIL = "change-email"


class UserMail(StrEnum):
    """What the service writes to users.

    The values are names of templates in `src/mail`, except of SIGN_UP, which has two.
    """

    SIGN_UP = "sign_up"
    RESET_PASSWORD = "reset_password"  # noqa: S105 - a template
    CHANGE_EMAIL = "change_email"
    EMAIL_CHANGE_REQUESTED = "email_change_requested"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - a template


class UserNotFoundError(NotFoundError):
    code = "user-not-found"
    title = "User not found"
    message = "There is no user with the ID {id}."


class UserExistsError(ConflictError):
    """For administrators only. Others must not learn which accounts exist."""

    code = "user-exists"
    title = "User exists"
    message = "There is already an account with the address {email}."


class SessionNotFoundError(NotFoundError):
    code = "session-not-found"
    title = "Session not found"
    message = "You have no session with the ID {id}."


class LoginFailedError(UnauthenticatedError):
    """One text for every reason: it must not tell which accounts exist."""

    code = "login-failed"
    title = "Log-in failed"
    message = "The e-mail address or the password is wrong, or the account cannot log in."


class WrongPasswordError(ForbiddenError):
    code = "wrong-password"
    title = "Wrong password"
    message = "The current password is wrong."


class NotAUserError(ForbiddenError):
    """The principal is another kind, such as an API key."""

    code = "not-a-user"
    title = "Not a user"
    message = "Only a user who is logged in can do this."


class SignUpClosedError(ForbiddenError):
    code = "sign-up-closed"
    title = "Sign-up closed"
    message = "An administrator creates accounts."


class RoleTooPowerfulError(ForbiddenError):
    code = "role-too-powerful"
    title = "Role too powerful"
    message = "The role {role} has scopes that you do not have."


class CrossSiteRequestError(ForbiddenError):
    """A request with the session's cookie may come from another site."""

    code = "cross-site-request"
    title = "Cross-site request"
    message = (
        "A request with the session's cookie, or for one, needs the header Origin or Sec-Fetch-Site"
        " of a page of this service, or of an origin in CORS_ORIGINS."
    )


class LastAdminError(ConflictError):
    code = "last-admin"
    title = "Last administrator"
    message = "This is the last administrator. Give another user this role first."


class InvalidTokenError(InvalidValueError):
    """One text for every reason, so that no one learns anything about a token."""

    code = "invalid-token"
    title = "Invalid token"
    message = "The token is invalid, used or expired. Request another one."
