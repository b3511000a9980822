"""Every error leaves the service as RFC 9457 `application/problem+json`, from here.

Nothing internal is in a body: no exception's text but that of the domain's own errors, no input,
no SQL. The request id is, and leads to the log, which has the rest.
"""

import http.client
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, cast

import structlog
from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.db.session import DatabaseUnavailableError
from src.domain.errors import ConflictError, DomainError, NotFoundError, StaleVersionError
from src.domain.idempotency import IdempotencyKeyInUseError, IdempotencyKeyReusedError

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = "1"
_TRY_AGAIN = {"Retry-After": RETRY_AFTER_SECONDS}
CHARACTER_NOT_IN_REPERTOIRE = "22021"  # SQLSTATE

# The nearest class of an error's ancestry decides.
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
        examples=["urn:problem-type:item-archived"],
    )
    title: str = Field(examples=["Item is archived"])
    status: int = Field(examples=[409])
    detail: str | None = Field(default=None, examples=["An archived item cannot be changed."])
    instance: str = Field(description="The path of the request.")
    request_id: str | None = Field(description="The X-Request-ID under which the log has more.")
    errors: list[InvalidField] | None = Field(
        default=None, description="What is wrong where, if the request is not valid."
    )


def problem_response(
    scope: Scope,
    status: int,
    *,
    headers: dict[str, str] | None = None,
    title: str | None = None,
    **members: Any,
) -> JSONResponse:
    problem = Problem(
        title=title or _phrase(status),
        status=status,
        instance=scope["path"],
        request_id=correlation_id.get(),
        **members,
    )
    return JSONResponse(
        problem.model_dump(exclude_none=True), status, headers, media_type=MEDIA_TYPE
    )


def _phrase(status: int) -> str:
    return http.client.responses.get(status, "Error")


async def _domain_error(request: Request, exc: Exception) -> JSONResponse:
    error = cast(DomainError, exc)
    status = next(_STATUS[kind] for kind in type(exc).__mro__ if kind in _STATUS)
    return problem_response(
        request.scope,
        status,
        type=f"urn:problem-type:{error.code}",
        title=error.title,
        detail=str(error),
        headers=_TRY_AGAIN if isinstance(exc, IdempotencyKeyInUseError) else None,
    )


async def _http_error(request: Request, exc: Exception) -> JSONResponse:
    error = cast(HTTPException, exc)
    is_phrase = error.detail == _phrase(error.status_code)
    return problem_response(
        request.scope,
        error.status_code,
        detail=None if is_phrase else str(error.detail),
        headers={**(error.headers or {}), **_allow(request, error.status_code)},
    )


def _allow(request: Request, status: int) -> dict[str, str]:
    """Name every method that the path has; Starlette names those of one route alone."""
    if status != HTTPStatus.METHOD_NOT_ALLOWED:
        return {}
    methods = [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]
    return {"Allow": ", ".join(methods)}


async def _invalid_request(request: Request, exc: Exception) -> JSONResponse:
    error = cast(RequestValidationError, exc)
    return problem_response(
        request.scope,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        detail="The request is not valid.",
        errors=[
            InvalidField(location=_dotted(fault["loc"]), detail=fault["msg"])
            for fault in error.errors()
        ],
    )


def _dotted(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location)


async def _database_unavailable(request: Request, exc: Exception) -> JSONResponse:
    log.error("database_unavailable", cause=repr(exc.__cause__ or exc))
    return problem_response(
        request.scope,
        HTTPStatus.SERVICE_UNAVAILABLE,
        detail="The database does not answer.",
        headers=_TRY_AGAIN,
    )


async def _database_error(request: Request, exc: Exception) -> JSONResponse:
    """Answer 422 to text that PostgreSQL cannot hold, whatever the schema let in."""
    error = cast(DBAPIError, exc)
    if getattr(error.orig, "sqlstate", None) != CHARACTER_NOT_IN_REPERTOIRE:
        raise error
    return problem_response(
        request.scope, HTTPStatus.UNPROCESSABLE_ENTITY, detail="Text may not contain NUL."
    )


def add_exception_handlers(app: FastAPI) -> None:
    """Register the handlers; they take any `Exception`, as Starlette's types have it."""
    app.add_exception_handler(DomainError, _domain_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(DatabaseUnavailableError, _database_unavailable)
    app.add_exception_handler(PoolTimeoutError, _database_unavailable)
    app.add_exception_handler(DBAPIError, _database_error)


class UnexpectedErrorMiddleware:
    """Log what nobody foresaw, once, and answer 500.

    Starlette's own last resort sits outside all middleware, where the answer would miss the
    request id, the security and the CORS headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception:
            if started or scope["type"] != "http":
                raise
            log.exception("unexpected_error", method=scope["method"], path=scope["path"])
            response = problem_response(scope, HTTPStatus.INTERNAL_SERVER_ERROR)
            await response(scope, receive, send)
