"""The OpenAPI document, and how it tells of errors."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from src.core.exceptions import MEDIA_TYPE, Problem

_JSON = "application/json"
_PROBLEM_REF = f"#/components/schemas/{Problem.__name__}"

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "Makes it safe to send the request again: for 24 hours, the same key gets the same"
        " response, with `Idempotency-Replayed: true`."
    ),
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "example": '"8e03978e-40d5-43dd-bc93-6894a57f9324"',
}
_IDEMPOTENCY_STATUSES = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare errors for `responses=`; every operation may answer 422 and 503 anyway."""
    return {status: {"model": Problem} for status in statuses}


class Application(FastAPI):
    """FastAPI, but its document says that errors are `application/problem+json`."""

    _labelled: dict[str, Any] | None = None

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        if document is not self._labelled:  # FastAPI keeps it until routes are added
            for path in document["paths"].values():
                for method, operation in path.items():
                    if method == "post":
                        _offer_idempotency(operation)
                    _relabel_problems(operation["responses"])
            self._labelled = document
        return document


def _offer_idempotency(operation: dict[str, Any]) -> None:
    """Tell of what `IdempotencyMiddleware` does around every POST."""
    operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
    for status in _IDEMPOTENCY_STATUSES:
        content = {MEDIA_TYPE: {"schema": {"$ref": _PROBLEM_REF}}}
        problem = {"description": status.phrase, "content": content}
        operation["responses"].setdefault(str(status.value), problem)


def _relabel_problems(responses: dict[str, Any]) -> None:
    """FastAPI files each declared model under the media type of the route's success."""
    for response in responses.values():
        content = response.get("content", {})
        if content.get(_JSON, {}).get("schema") == {"$ref": _PROBLEM_REF}:
            content[MEDIA_TYPE] = content.pop(_JSON)
