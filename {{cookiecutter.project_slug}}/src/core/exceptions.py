"""Which error becomes which response; `src.api.problems` writes its body."""

from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from src.api.problems import TRY_AGAIN, InvalidField, phrase_of, problem_response, status_of
from src.db.session import DatabaseUnavailableError, InvalidTextError
from src.domain.errors import DomainError
from src.domain.idempotency import IdempotencyKeyInUseError

log = structlog.get_logger(__name__)


def add_exception_handlers(app: FastAPI) -> None:
    """Bugs are not handled here: `UnexpectedErrorMiddleware` answers 500."""
    app.exception_handler(DomainError)(_domain_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_invalid_request)
    app.exception_handler(InvalidTextError)(_invalid_text)
    app.exception_handler(DatabaseUnavailableError)(_database_unavailable)
    app.exception_handler(PoolTimeoutError)(_database_unavailable)


async def _domain_error(request: Request, error: DomainError) -> JSONResponse:
    return problem_response(
        request.scope,
        status_of(type(error)),
        type=f"urn:problem-type:{error.code}",
        title=error.title,
        detail=str(error),
        headers=TRY_AGAIN if isinstance(error, IdempotencyKeyInUseError) else None,
    )


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    says_more = error.detail != phrase_of(error.status_code)
    return problem_response(
        request.scope,
        error.status_code,
        detail=str(error.detail) if says_more else None,
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


async def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    return problem_response(
        request.scope,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        detail="The request is not valid.",
        errors=[
            InvalidField(location=".".join(map(str, fault["loc"])), detail=fault["msg"])
            for fault in error.errors()
        ],
    )


async def _invalid_text(request: Request, _error: InvalidTextError) -> JSONResponse:
    return problem_response(
        request.scope, HTTPStatus.UNPROCESSABLE_ENTITY, detail="Text must not contain NUL."
    )


async def _database_unavailable(request: Request, error: Exception) -> JSONResponse:
    log.error("database_unavailable", cause=repr(error.__cause__ or error))
    return problem_response(
        request.scope,
        HTTPStatus.SERVICE_UNAVAILABLE,
        detail="Database unavailable.",
        headers=TRY_AGAIN,
    )
