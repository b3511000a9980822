"""Exception handlers, which turn errors into problem responses."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, WebSocket, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import iter_route_contexts
from fastapi.utils import is_body_allowed_for_status_code
from sqlalchemy.exc import StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.websockets import WebSocketState

from src.api.problems import (
    DATABASE_ERRORS,
    RETRY_AFTER,
    InvalidField,
    Problem,
    challenge,
    members_of,
    phrase_of,
    problem_response,
    status_of,
)
from src.db.session import DatabaseUnavailableError, sqlstate_of
from src.domain.errors import (
    DomainError,
    IdempotencyKeyInUseError,
    MissingScopeError,
    OverloadedError,
    TooManyRequestsError,
    UnauthenticatedError,
)

log = structlog.get_logger(__name__)

Handler = Callable[[Any, Any], Awaitable[Response | None]]
MAX_ERRORS = 100  # in one response
MAX_ERROR_LENGTH = 300  # an error may contain a name or value of the request
MAX_REASON_BYTES = 123  # RFC 6455, section 5.5


def add_exception_handlers(app: FastAPI) -> None:
    """Add the handlers. `RequestMiddleware` handles all other exceptions."""
    handlers: dict[type[Exception], Handler] = {
        DomainError: _domain_error,
        HTTPException: _http_error,
        RequestValidationError: _invalid_request,
        StatementError: _database_error,
        StaleDataError: _stale_data,
        DatabaseUnavailableError: _database_unavailable,
        PoolTimeoutError: _database_unavailable,
    }
    for error, handler in handlers.items():
        app.exception_handler(error)(_close_sockets(handler))


def _close_sockets(handler: Handler) -> Handler:
    """Close a WebSocket that is accepted, with the title and detail: it cannot get a response."""

    async def handle(connection: Any, error: Any) -> Response | None:
        response = await handler(connection, error)
        is_accepted = (
            isinstance(connection, WebSocket)
            and connection.application_state is WebSocketState.CONNECTED
        )
        if response is None or not response.body or not is_accepted:
            return response
        problem = Problem.model_validate_json(bytes(response.body))
        reason = f"{problem.title}: {problem.detail}" if problem.detail else problem.title
        is_fault = response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
        code = status.WS_1011_INTERNAL_ERROR if is_fault else status.WS_1008_POLICY_VIOLATION
        shortened = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        await connection.close(code, shortened)
        return None

    return handle


async def _domain_error(request: Request, error: DomainError) -> JSONResponse:
    return problem_response(
        request.scope,
        status_of(type(error)),
        type=f"urn:problem-type:{error.code}",
        title=error.title,
        detail=str(error),
        headers=_headers_of(error),
    )


def _headers_of(error: DomainError) -> dict[str, str] | None:
    match error:
        case IdempotencyKeyInUseError() | OverloadedError():
            return RETRY_AFTER
        case TooManyRequestsError():
            return {"Retry-After": str(error.seconds)}
        case MissingScopeError():
            return {"WWW-Authenticate": challenge("insufficient_scope", scope=error.scope)}
        case UnauthenticatedError():
            return {"WWW-Authenticate": challenge()}
    return None


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
            InvalidField(
                location=".".join(map(str, fault["loc"]))[:MAX_ERROR_LENGTH],
                detail=fault["msg"][:MAX_ERROR_LENGTH],
            )
            for fault in error.errors()[:MAX_ERRORS]
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
        detail="The database is unavailable or busy. Try again later.",
        headers=RETRY_AFTER,
    )
