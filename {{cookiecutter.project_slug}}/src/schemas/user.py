import uuid
from datetime import datetime
from typing import Annotated

from pydantic import MISSING, BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from src.domain.principal import Role

# As browsers check `<input type="email">`. Other alphabets are refused: letters that look alike, or
# that become equal in lower case, would make two accounts of one mailbox, or one of two.
_MAILBOX = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = rf"^{_MAILBOX}@{_LABEL}(?:\.{_LABEL})*$"

Email = Annotated[
    str,
    StringConstraints(pattern=_EMAIL, max_length=254),
    Field(
        description="An e-mail address in ASCII. Upper and lower case are the same.",
        examples=["ann@example.com"],
    ),
]
Password = Annotated[SecretStr, Field(max_length=1000)]
NewPassword = Annotated[
    Password,
    Field(
        description=(
            "15 to 128 characters, for example several words. Common passwords, sequences and"
            " repetitions are refused."
        ),
        examples=["lamp river cactus 7"],
    ),
]


class SignUp(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: Email


class Accepted(BaseModel):
    detail: str = Field(description="What happens next.")


class Login(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: Email
    password: Password = Field(description="The password of the account.")
    cookie: bool = Field(
        default=False,
        description=(
            "For web pages: the response sets a cookie and does not contain the token. Scripts of a"
            " page cannot read the cookie."
        ),
    )


class PasswordConfirmation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    password: Password = Field(description="The current password.")


class PasswordChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    current_password: Password = Field(description="The current password.")
    new_password: NewPassword


class UserResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID = Field(description="The user's ID, a UUIDv7.")
    email: str = Field(description="The e-mail address.", examples=["ann@example.com"])
    role: Role = Field(description="The role, which is a set of scopes.")
    verified_at: datetime | None = Field(
        description="When the user proved to read this mailbox. `null`: not yet."
    )
    disabled_at: datetime | None = Field(
        description="When the account was disabled. `null`: it is not."
    )
    created_at: datetime = Field(description="When the account was created.")


class UserUpdate(BaseModel):
    """Omitted fields do not change."""

    model_config = ConfigDict(extra="forbid")

    role: Role | MISSING = Field(default=MISSING, description="The new role.")
    disabled: bool | MISSING = Field(
        default=MISSING,
        description="Whether the account is disabled. That ends all its sessions.",
    )


class UserListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=100, description="Maximum number of users.")
    cursor: uuid.UUID | None = Field(
        default=None, description="The `next_cursor` of the previous page."
    )
    email: Email | None = Field(default=None, description="Return only the user with this address.")


class UserPage(BaseModel):
    users: list[UserResponse] = Field(description="The users of this page, newest first.")
    next_cursor: uuid.UUID | None = Field(
        description="Pass this as `cursor` to get the next page. `null` on the last page."
    )


class StartedSession(BaseModel):
    id: uuid.UUID = Field(description="The ID of the session.")
    token: str | None = Field(
        description=(
            "Send it as `Authorization: Bearer …`, and store it where other programs cannot read it."
            " `null` if the response sets a cookie."
        ),
        examples=["session_4nN0…"],
    )
    user: UserResponse = Field(description="The user who is logged in.")


class SessionResponse(BaseModel):
    id: uuid.UUID = Field(description="The ID of the session.")
    client: str = Field(
        description="The browser or app, as it describes itself.", examples=["curl/8.11.0"]
    )
    created_at: datetime = Field(description="When the user logged in.")
    last_used_at: datetime = Field(description="When it was last used, within one minute.")
    current: bool = Field(description="Whether this request belongs to the session.")


class SessionList(BaseModel):
    sessions: list[SessionResponse] = Field(
        description="The sessions, the one that was used last first."
    )
