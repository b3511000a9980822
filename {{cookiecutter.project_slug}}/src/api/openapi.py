"""The OpenAPI document, and how it tells of errors."""

from typing import Any

from fastapi import FastAPI

from src.core.exceptions import MEDIA_TYPE, Problem

_JSON = "application/json"
_PROBLEM_REF = f"#/components/schemas/{Problem.__name__}"


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
                for operation in path.values():
                    _relabel_problems(operation["responses"])
            self._labelled = document
        return document


def _relabel_problems(responses: dict[str, Any]) -> None:
    """FastAPI files each declared model under the media type of the route's success."""
    for response in responses.values():
        content = response.get("content", {})
        if content.get(_JSON, {}).get("schema") == {"$ref": _PROBLEM_REF}:
            content[MEDIA_TYPE] = content.pop(_JSON)
