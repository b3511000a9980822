"""The OpenAPI document, with the error responses that follow from each operation's parameters."""

import inspect
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from src.api import (
    auth,
    deps,
    rate_limits,
    # % if cookiecutter.__users
    sessions,
    # % endif
)
from src.api.problems import MEDIA_TYPE, Problem, status_of
from src.domain.errors import (
    DomainError,
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    MissingScopeError,
    StaleVersionError,
    UnauthenticatedError,
)

_SCHEMAS = "#/components/schemas/"

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "A unique value that makes retries safe. For 24 hours, a second request with the same key"
        " changes nothing. It gets the first response again, with `Idempotency-Replayed: true`."
    ),
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "example": '"8e03978e-40d5-43dd-bc93-6894a57f9324"',
}
SECURITY_SCHEMES: dict[str, dict[str, Any]] = {
    "API key": {
        "type": "apiKey",
        "in": "header",
        "name": auth.API_KEY_HEADER,
        "description": "A key of `cli.py keys create`, or of the setting `API_KEYS`.",
    },
    # % if cookiecutter.__oidc
    "Access token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "An access token of the identity provider.",
    },
    # % endif
    # % if cookiecutter.__users
    "Session token": {
        "type": "http",
        "scheme": "bearer",
        "description": "The token of `POST /sessions/`.",
    },
    "Session cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": sessions.COOKIE,
        "description": "`POST /sessions/` with `cookie: true` sets it. The browser then sends it.",
    },
    # % endif
}
# Responses of `IdempotencyMiddleware` to a POST, and of FastAPI to a request with a body.
_ERRORS_OF_POST = (400, IdempotencyKeyInUseError, 413, IdempotencyKeyReusedError, 503)
_ERRORS_OF_BODY = (400, 413)
_ERRORS_OF_DEPENDENCY: dict[Callable[..., Any], tuple[type[DomainError] | int, ...]] = {
    deps.get_db_session: (409, 503),
    deps.get_expected_versions: (StaleVersionError,),
    deps.get_expensive_read_session: (503,),
    deps.get_read_session: (503,),
    deps.get_reader: (503,),
    rate_limits.get_counter: (429,),
}


def problems(*errors: type[DomainError] | int) -> dict[int | str, dict[str, Any]]:
    """Declare the errors of an endpoint, for `responses=`.

    Pass domain errors, or status codes of an `HTTPException`. `ProblemOpenAPI` adds the errors that
    follow from parameters, body and dependencies.
    """
    examples: dict[int, dict[str, Any]] = {}
    for error in errors:
        example = _example(error)
        examples.setdefault(example["status"], {})[example["title"]] = {"value": example}
    return {
        status: {
            "description": "; ".join(titled),
            "content": {
                MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS + Problem.__name__}, "examples": titled}
            },
        }
        for status, titled in examples.items()
    }


def _example(error: type[DomainError] | int) -> dict[str, Any]:
    if isinstance(error, int):
        kind, title, status = "about:blank", HTTPStatus(error).phrase, error
    else:
        kind, title, status = f"urn:problem-type:{error.code}", error.title, int(status_of(error))
    return {"type": kind, "title": title, "status": status, "instance": "/api/…", "request_id": "…"}


class ProblemOpenAPI(FastAPI):
    """FastAPI with an OpenAPI document that describes errors as `application/problem+json`."""

    _described: dict[str, Any] | None = None

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        if document is not self._described:  # FastAPI stores it until routes change
            for route in iter_route_contexts(self.routes):
                for method in route.methods or ():
                    path = document["paths"].get(route.path_format, {})
                    if operation := path.get(method.lower()):
                        if not auth.allows_anonymous(route.endpoint):
                            _describe_security(operation, route.dependant)
                        _describe_errors(operation, method, route.dependant)
            components = document.setdefault("components", {})
            components.setdefault("securitySchemes", {}).update(SECURITY_SCHEMES)
            _describe_problem(components.setdefault("schemas", {}))
            self._described = document
        return document


def _describe_security(operation: dict[str, Any], dependant: Dependant) -> None:
    """Add the scopes, and that the caller needs one of the schemes."""
    scopes = sorted(auth.required_scopes(dependant))
    operation["security"] = [
        *operation.get("security", ()),
        *({name: scopes} for name in SECURITY_SCHEMES),
    ]
    # Credentials cannot be looked up while a server is unavailable.
    errors: list[type[DomainError] | int] = [UnauthenticatedError, 503]
    if scopes:
        errors.append(MissingScopeError)
    for status, response in problems(*errors).items():
        operation["responses"].setdefault(str(status), response)


def _describe_errors(operation: dict[str, Any], method: str, dependant: Dependant) -> None:
    responses = operation["responses"]
    known = _ERRORS_OF_DEPENDENCY
    errors = [
        error for each in auth.walk(dependant) if each.call in known for error in known[each.call]
    ]
    if responses.get("422", {}).get("description") == "Validation Error":
        del responses["422"]  # added by FastAPI; has another media type
        errors.append(422)
    if "requestBody" in operation:
        errors += _ERRORS_OF_BODY
    if method == "POST" and accepts_idempotency_key(dependant):
        operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
        errors += _ERRORS_OF_POST
    for status, response in problems(*errors).items():
        responses.setdefault(str(status), response)
    operation["responses"] = dict(sorted(responses.items()))


def accepts_idempotency_key(dependant: Dependant) -> bool:
    call = inspect.unwrap(cast(Callable[..., Any], dependant.call))
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        return False  # the response is a stream
    return all(each.call is not deps.ignore_idempotency_key for each in auth.walk(dependant))


def _describe_problem(schemas: dict[str, Any]) -> None:
    """Replace FastAPI's error schemas with `Problem`."""
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    problem = Problem.model_json_schema(ref_template=_SCHEMAS + "{model}")
    schemas.update(problem.pop("$defs"))
    schemas[Problem.__name__] = problem
