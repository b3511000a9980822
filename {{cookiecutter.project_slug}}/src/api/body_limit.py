"""Rejects requests that are too large, or whose JSON would block the event loop."""

import json
import re
from functools import cached_property
from http import HTTPStatus
from itertools import accumulate

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware, RequestBodyLimitResponder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.problems import problem_response

MAX_JSON_DEPTH = 64
# A JSON body may have 1,000 members and elements, or one for each 64 bytes of `max_body_size`.
MIN_JSON_MEMBERS = 1000
BYTES_PER_MEMBER = 64
MAX_QUERY_PARAMETERS = 1000
_BODY_HEADERS = {b"content-length", b"transfer-encoding"}
_SURROGATE_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


def has_body(scope: Scope) -> bool:
    """Return whether the request may have a body. In HTTP/1.1, a header announces it."""
    return not scope["http_version"].startswith("1") or any(
        name in _BODY_HEADERS for name, _ in scope["headers"]
    )


class BodyLimitMiddleware(RequestBodyLimitMiddleware):
    """Reject a larger body with 413, with or without a Content-Length, and JSON with too many members.

    `max_body_size` of a route, a router or `include_router()` replaces the limit.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["query_string"].count(b"&") >= MAX_QUERY_PARAMETERS:
            detail = f"A request may have at most {MAX_QUERY_PARAMETERS} query parameters."
            response = problem_response(scope, HTTPStatus.REQUEST_URI_TOO_LONG, detail=detail)
            await response(scope, receive, send)
        elif has_body(scope):
            await _BodyLimit(self.app, self.max_body_size)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class _BodyLimit(RequestBodyLimitResponder):
    """Raises an error that becomes a problem. Starlette's response would be plain text."""

    def __init__(self, app: ASGIApp, max_body_size: int) -> None:
        super().__init__(app, max_body_size)
        self.json: list[bytes] = []

    @cached_property
    def _is_json(self) -> bool:
        return "json" in Headers(scope=self.scope).get("content-type", "json").lower()

    async def receive_with_limit(self) -> Message:
        try:
            message = await super().receive_with_limit()
        except HTTPException:
            detail = f"The request body must not exceed {self.max_body_size} bytes."
            raise HTTPException(413, detail) from None
        if message.get("body") and self._is_json:
            self.json.append(message["body"])
        if self.json and not message.get("more_body"):
            max_members = max(MIN_JSON_MEMBERS, self.max_body_size // BYTES_PER_MEMBER)
            _check_json(b"".join(self.json), max_members)
            self.json.clear()
        return message

    async def send_with_limit(self, message: Message) -> None:
        await self.send(message)


def _check_json(body: bytes, max_members: int) -> None:
    """Reject JSON that would block the event loop, or contains text that nothing can encode.

    Raises HTTPException.
    """
    if not json.detect_encoding(body).startswith("utf-8"):  # the parser accepts UTF-16 too
        raise HTTPException(400, "JSON must be encoded as UTF-8.")
    if b"\xed" in body or b"\\u" in body:
        text = _SURROGATE_PAIR.sub(b"-", body.replace(b"\\\\", b"-"))
        if re.search(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]", text):
            raise HTTPException(422, "Text must not contain unpaired surrogates.")
    opened = body.count(b"[") + body.count(b"{")
    if opened <= MAX_JSON_DEPTH and opened + body.count(b",") <= max_members:
        return  # no need to find out which characters are in strings
    # Valid JSON has at most four quotes and two brackets for each member.
    max_quotes = 4 * max_members + 2
    parts = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"', max_quotes)
    text = b"".join(parts[::2])
    if sum(map(text.count, (b"[", b"{", b","))) <= max_members:
        brackets = re.sub(rb"[^][{}]+", b"", text)[: 2 * max_members]
        depths = accumulate(1 if bracket in b"[{" else -1 for bracket in brackets)
        if max(depths, default=0) <= MAX_JSON_DEPTH:
            return
    detail = f"A JSON body may have at most {max_members} members and {MAX_JSON_DEPTH} levels."
    raise HTTPException(413, detail)
