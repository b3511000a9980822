"""The body of every error response: RFC 9457 `application/problem+json`.

It never contains internals such as SQL, input values or messages of unexpected exceptions. The
log has them, under the same request ID.
"""

import http.client
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pydantic_core import to_jsonable_python
from starlette.types import Scope

from src.core.trace import request_id
from src.domain.errors import (
    ConflictError,
    DomainError,
    ForbiddenError,
    IdempotencyKeyReusedError,
    InvalidCursorError,
    InvalidValueError,
    NotFoundError,
    OverloadedError,
    StaleVersionError,
    TooManyRequestsError,
    UnauthenticatedError,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = {"Retry-After": "1"}

_STATUS: dict[type[DomainError], HTTPStatus] = {
    UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    ForbiddenError: HTTPStatus.FORBIDDEN,
    IdempotencyKeyReusedError: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidCursorError: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidValueError: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotFoundError: HTTPStatus.NOT_FOUND,
    ConflictError: HTTPStatus.CONFLICT,
    StaleVersionError: HTTPStatus.PRECONDITION_FAILED,
    TooManyRequestsError: HTTPStatus.TOO_MANY_REQUESTS,
    OverloadedError: HTTPStatus.SERVICE_UNAVAILABLE,
    DomainError: HTTPStatus.BAD_REQUEST,
}

# Responses to PostgreSQL errors, by SQLSTATE. Add others here, such as those that your triggers raise:
# https://www.postgresql.org/docs/current/errcodes-appendix.html
DATABASE_ERRORS: dict[str, tuple[HTTPStatus, str]] = {
    "22001": (HTTPStatus.UNPROCESSABLE_ENTITY, "A text is too long."),
    "22003": (HTTPStatus.UNPROCESSABLE_ENTITY, "A number is out of range."),
    "22007": (HTTPStatus.UNPROCESSABLE_ENTITY, "A date or time is invalid, or has no UTC offset."),
    "22008": (HTTPStatus.UNPROCESSABLE_ENTITY, "A date or time is out of range."),
    "2201B": (HTTPStatus.UNPROCESSABLE_ENTITY, "A regular expression is invalid."),
    "2201W": (HTTPStatus.UNPROCESSABLE_ENTITY, "A limit must not be negative."),
    "2201X": (HTTPStatus.UNPROCESSABLE_ENTITY, "An offset must not be negative."),
    "22021": (HTTPStatus.UNPROCESSABLE_ENTITY, "Text must not contain NUL or invalid Unicode."),
    "22P02": (HTTPStatus.UNPROCESSABLE_ENTITY, "A value has an invalid format."),
    "22P05": (HTTPStatus.UNPROCESSABLE_ENTITY, "Text must not contain NUL."),
    "23001": (HTTPStatus.CONFLICT, "Another record refers to this one."),
    "23502": (HTTPStatus.UNPROCESSABLE_ENTITY, "A required value is missing."),
    "23503": (HTTPStatus.CONFLICT, "A record does not exist, or another one refers to it."),
    "23505": (HTTPStatus.CONFLICT, "A record with this value exists already."),
    "23514": (HTTPStatus.UNPROCESSABLE_ENTITY, "A value is not allowed."),
    "23P01": (HTTPStatus.CONFLICT, "The record conflicts with an existing one."),
    "54000": (HTTPStatus.UNPROCESSABLE_ENTITY, "A value is too large."),
    "55P03": (HTTPStatus.CONFLICT, "The record is in use by another request. Try again."),
}


class InvalidField(BaseModel):
    location: str = Field(
        description="The part of the request, and the name of the field.", examples=["body.name"]
    )
    detail: str = Field(description="What is wrong with the value.", examples=["Field required"])


class Problem(BaseModel):
    """The body of every error response (RFC 9457)."""

    type: str = Field(
        default="about:blank",
        description="Identifies the problem. `about:blank` means: see `status`.",
        examples=["urn:problem-type:stale-version"],
    )
    title: str = Field(description="The problem in a few words.", examples=["Version conflict"])
    status: int = Field(description="The HTTP status code.", examples=[412])
    detail: str | None = Field(
        default=None,
        description="What went wrong in this request.",
        examples=["The current version is 4."],
    )
    instance: str = Field(description="The path of the request.", examples=["/api/v1/app-info"])
    request_id: str | None = Field(
        description="The request's ID, as in `X-Request-ID` and in the logs.",
        examples=["4f8a2b61c0d94c5f8e7a3b2c1d0e9f86"],
    )
    errors: list[InvalidField] | None = Field(
        default=None, description="The invalid fields of the request (status 422)."
    )


def challenge(error: str | None = None, **parameters: str) -> str:
    """Return the value of `WWW-Authenticate` (RFC 9110, RFC 6750). Without credentials: no `error`."""
    given = {"error": error, **parameters} if error else parameters
    parts = [f'{name}="{value}"' for name, value in given.items()]
    challenges = [
        # % if cookiecutter.__oidc or cookiecutter.__users
        ("Bearer", parts),
        # % endif
        ("ApiKey", ['header="X-API-Key"', *parts]),
    ]
    return ", ".join(f"{scheme} {', '.join(each)}".strip() for scheme, each in challenges)


def status_of(error: type[DomainError]) -> HTTPStatus:
    """Return the status of the error's nearest base class in `_STATUS`."""
    return next(_STATUS[kind] for kind in error.__mro__ if kind in _STATUS)


def problem_response(
    scope: Scope,
    status: int,
    *,
    headers: Mapping[str, str] | None = None,
    title: str | None = None,
    extensions: Mapping[str, Any] | None = None,
    **members: Any,
) -> JSONResponse:
    """Return a problem. `extensions` are further members, with values that JSON can represent."""
    problem = Problem(
        title=title or phrase_of(status),
        status=status,
        instance=scope["path"],
        request_id=request_id.get(),
        **members,
    )
    content = {**problem.model_dump(exclude_none=True), **(extensions or {})}
    return JSONResponse(content, status, headers, media_type=MEDIA_TYPE)


def members_of(detail: Any) -> dict[str, Any]:
    """Return the arguments of `problem_response` for the `detail` of an `HTTPException`.

    The entries of a mapping become members of the problem, and a list becomes the member `details`.
    A name that is reserved for another value gets an underscore: `status` becomes `status_`.
    """
    given = to_jsonable_python(detail, fallback=str, inf_nan_mode="null")
    if isinstance(given, list):
        return {"extensions": {"details": given}}
    if not isinstance(given, dict):
        return {"detail": str(detail)}
    members = {
        name: given.pop(name)
        for name in ("type", "title", "detail")
        if isinstance(given.get(name), str)
    }
    reserved = Problem.model_fields.keys() - {"errors"}
    extensions = {f"{name}_" if name in reserved else name: given[name] for name in given}
    return {**members, "extensions": extensions}


def phrase_of(status: int) -> str:
    return http.client.responses.get(status, "Error")
