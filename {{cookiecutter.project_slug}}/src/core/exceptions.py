"""Exception handlers, which turn errors into problem responses."""

from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import iter_route_contexts
from fastapi.utils import is_body_allowed_for_status_code
from sqlalchemy.exc import StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from src.api.problems import (
    DATABASE_ERRORS,
    RETRY_AFTER,
    InvalidField,
    members_of,
    phrase_of,
    problem_response,
    status_of,
)
from src.db.session import DatabaseUnavailableError, sqlstate_of
from src.domain.errors import DomainError, IdempotencyKeyInUseError

log = structlog.get_logger(__name__)


def add_exception_handlers(app: FastAPI) -> None:
    """Add the handlers. `UnexpectedErrorMiddleware` handles all other exceptions."""
    app.exception_handler(DomainError)(_domain_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_invalid_request)
    app.exception_handler(StatementError)(_database_error)
    app.exception_handler(StaleDataError)(_stale_data)
    app.exception_handler(DatabaseUnavailableError)(_database_unavailable)
    app.exception_handler(PoolTimeoutError)(_database_unavailable)


async def _domain_error(request: Request, error: DomainError) -> JSONResponse:
    return problem_response(
        request.scope,
        status_of(type(error)),
        type=f"urn:problem-type:{error.code}",
        title=error.title,
        detail=str(error),
        headers=RETRY_AFTER if isinstance(error, IdempotencyKeyInUseError) else None,
    )


async def _http_error(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    if not is_body_allowed_for_status_code(error.status_code):
        return Response(status_code=error.status_code, headers=headers)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := _methods_of(request)):
        headers["Allow"] = ", ".join(methods)
    has_detail = error.detail not in (None, phrase_of(error.status_code))
    members = members_of(error.detail) if has_detail else {}
    return problem_response(request.scope, error.status_code, headers=headers, **members)


def _methods_of(request: Request) -> list[str]:
    """Return the methods of all routes with this path; Starlette's `Allow` has those of one."""
    routes = iter_route_contexts(request.app.routes)
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in matching for method in route.methods or ()}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


async def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    return problem_response(
        request.scope,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        detail="The request has invalid fields; see `errors`.",
        errors=[
            InvalidField(location=".".join(map(str, fault["loc"])), detail=fault["msg"])
            for fault in error.errors()
        ],
    )


async def _database_error(request: Request, error: StatementError) -> JSONResponse:
    """Respond to an error that the request's values caused. All others are bugs: raise them."""
    sqlstate = sqlstate_of(error)
    if sqlstate not in DATABASE_ERRORS:
        raise error
    status, detail = DATABASE_ERRORS[sqlstate]
    cause = error.orig and error.orig.__cause__
    name = getattr(cause, "constraint_name", None) or getattr(cause, "column_name", None)
    return problem_response(
        request.scope, status, detail=f"{detail[:-1]} (`{name}`)." if name else detail
    )


async def _stale_data(request: Request, _error: StaleDataError) -> JSONResponse:
    detail = "Another request changed the record at the same time."
    return problem_response(request.scope, HTTPStatus.CONFLICT, detail=detail)


async def _database_unavailable(request: Request, error: Exception) -> JSONResponse:
    log.error("database_unavailable", cause=repr(error.__cause__ or error))
    return problem_response(
        request.scope,
        HTTPStatus.SERVICE_UNAVAILABLE,
        detail="Database unavailable.",
        headers=RETRY_AFTER,
    )
