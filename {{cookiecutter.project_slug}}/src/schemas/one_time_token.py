from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from src.schemas.user import Email, NewPassword, Password

Token = Annotated[
    SecretStr,
    Field(max_length=200, description="The token of the e-mail.", examples=["onetime_4nN0…"]),
]


class PasswordResetRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: Email


class PasswordReset(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: Token
    password: NewPassword


class EmailChangeRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: Email = Field(description="The new address.")
    password: Password = Field(description="The current password.")


class EmailChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: Token
