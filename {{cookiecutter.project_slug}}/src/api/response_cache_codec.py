"""The stored form of a cached response, its headers, and 304."""

from collections.abc import Sequence
from itertools import chain

from starlette.responses import Response
from starlette.types import Scope

from src.api.deps import CREDENTIAL_HEADERS
from src.api.response_cache_policy import ResponsePolicy
from src.cache.engine.keys import digest

Headers = list[tuple[bytes, bytes]]

_OK, _NOT_MODIFIED = 200, 304
_HEADERS_OF_304 = frozenset({b"cache-control", b"content-location", b"etag", b"expires", b"vary"})


class ResponseCodec:
    """Serializes a response as the names and values of its headers, a newline and the body."""

    def __init__(self, policy: ResponsePolicy, added: Headers) -> None:
        self.added = added
        self.forbidden = (b"no-store",) if policy.identity else (b"no-store", b"private")
        self.vary = {*CREDENTIAL_HEADERS, *(name.lower().encode() for name in policy.vary)}

    def encode(self, value: Response) -> bytes | None:
        body = getattr(value, "body", None)  # a StreamingResponse has no body
        if (
            body is None
            or value.status_code != _OK
            or value.background is not None
            or _header_tokens(value, b"set-cookie")
            or any(
                token.startswith(self.forbidden)
                for token in _header_tokens(value, b"cache-control", ignored=self.added)
            )
            or not self.vary.issuperset(_header_tokens(value, b"vary"))  # not in the key
        ):
            return None
        headers = [
            header
            for header in value.raw_headers
            if not header[0].startswith(b"ratelimit")  # of this request's caller
        ]
        texts = list(chain.from_iterable(headers))
        if any(b"\0" in text or b"\n" in text for text in texts):  # HTTP forbids them too
            return None
        return b"\0".join(texts) + b"\n" + bytes(body)

    def decode(self, data: bytes) -> Response:
        head, _, body = data.partition(b"\n")
        texts = head.split(b"\0")
        return RawResponse(body, list(zip(texts[::2], texts[1::2], strict=True)))


class RawResponse(Response):
    """A response with precomputed headers."""

    def __init__(self, body: bytes, headers: Headers, status_code: int = _OK) -> None:
        self.body = body
        self.raw_headers = headers
        self.status_code = status_code
        self.background = None


def apply_if_none_match(response: Response, scope: Scope) -> Response:
    """Return 304 if `If-None-Match` contains the ETag of the response (RFC 9110, 13.1.2)."""
    given = [value for name, value in scope["headers"] if name == b"if-none-match"]
    if not given or response.status_code != _OK:
        return response
    response_headers = dict(response.raw_headers)
    if response.background is not None or b"set-cookie" in response_headers:
        return response  # a 304 would lose them
    etag = response_headers.get(b"etag", b"").removeprefix(b"W/")
    known = [tag.strip().removeprefix(b"W/") for tag in b",".join(given).split(b",")]
    if not etag or (etag not in known and b"*" not in known):
        return response
    headers = [(name, value) for name, value in response.raw_headers if name in _HEADERS_OF_304]
    return RawResponse(b"", headers, _NOT_MODIFIED)


def cache_headers(policy: ResponsePolicy, *, is_public: bool) -> Headers:
    scope = "public" if is_public and not policy.identity else "private"
    freshness = f"max-age={policy.max_age}" if policy.max_age else "no-cache"
    headers = [(b"cache-control", f"{scope}, {freshness}".encode())]
    vary = [name.encode() for name in policy.vary]
    if policy.max_age:
        vary += CREDENTIAL_HEADERS  # the next person at the same browser may be another principal
    return [*headers, (b"vary", b", ".join(vary))] if vary else headers


def with_headers(response: Response, headers: Headers) -> Response:
    if response.status_code == _OK:
        # Several Vary headers add up. For any other header, the value from the endpoint is used.
        given = {name for name, _ in response.raw_headers} - {b"vary"}
        added = [header for header in headers if header[0] not in given]
        if b"etag" not in given and (body := getattr(response, "body", None)):
            added.append((b"etag", f'"{digest(body)}"'.encode()))
        response.raw_headers = [*response.raw_headers, *added]
    return response


def _header_tokens(
    response: Response, header: bytes, *, ignored: Sequence[tuple[bytes, bytes]] = ()
) -> list[bytes]:
    """Return the comma-separated tokens of a header, which may occur several times.

    `ignored` are the very headers that the cache has added, not equal ones of an endpoint.
    """
    given = [pair for pair in response.raw_headers if not any(pair is each for each in ignored)]
    values = [value for name, value in given if name == header]
    return [token.strip().lower() for value in values for token in value.split(b",")]
