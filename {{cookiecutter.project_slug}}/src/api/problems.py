"""The body of every error response: RFC 9457 `application/problem+json`.

It holds nothing internal: of exceptions only the messages of the domain's own errors, no input and
no SQL. Its request id leads to the log, which has the rest.
"""

import http.client
from http import HTTPStatus
from typing import Any

from asgi_correlation_id import correlation_id
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.types import Scope

from src.domain.errors import (
    ConflictError,
    DomainError,
    IdempotencyKeyReusedError,
    NotFoundError,
    StaleVersionError,
)

MEDIA_TYPE = "application/problem+json"
TRY_AGAIN = {"Retry-After": "1"}

_STATUS: dict[type[DomainError], HTTPStatus] = {
    IdempotencyKeyReusedError: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotFoundError: HTTPStatus.NOT_FOUND,
    ConflictError: HTTPStatus.CONFLICT,
    StaleVersionError: HTTPStatus.PRECONDITION_FAILED,
    DomainError: HTTPStatus.BAD_REQUEST,
}


class InvalidField(BaseModel):
    location: str = Field(examples=["body.name"])
    detail: str = Field(examples=["Field required"])


class Problem(BaseModel):
    """The body of every error (RFC 9457)."""

    type: str = Field(
        default="about:blank",
        description="Names the kind of problem; `about:blank` says no more than the status.",
        examples=["urn:problem-type:conflict"],
    )
    title: str = Field(examples=["Conflict"])
    status: int = Field(examples=[409])
    detail: str | None = Field(default=None, examples=["Another request has changed it."])
    instance: str = Field(description="The path of the request.")
    request_id: str | None = Field(description="The X-Request-ID under which the log has more.")
    errors: list[InvalidField] | None = Field(
        default=None, description="The invalid parts of the request."
    )


def status_of(error: type[DomainError]) -> HTTPStatus:
    """The nearest class of the error's ancestry decides."""
    return next(_STATUS[kind] for kind in error.__mro__ if kind in _STATUS)


def problem_response(
    scope: Scope,
    status: int,
    *,
    headers: dict[str, str] | None = None,
    title: str | None = None,
    **members: Any,
) -> JSONResponse:
    problem = Problem(
        title=title or phrase_of(status),
        status=status,
        instance=scope["path"],
        request_id=correlation_id.get(),
        **members,
    )
    return JSONResponse(
        problem.model_dump(exclude_none=True), status, headers, media_type=MEDIA_TYPE
    )


def phrase_of(status: int) -> str:
    return http.client.responses.get(status, "Error")
