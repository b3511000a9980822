"""Hostile requests to every operation of the API, over raw connections."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import URL

from tests.faults.servers import APPLICATION, api
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import LIMIT
from tests.fixtures.environment import API

pytestmark = pytest.mark.slow
REQUESTS = 1500
KEY = "k3y-of-the-hostile-test"
INTERNALS = [*b"Traceback site-packages sqlalchemy asyncpg SELECT".split(), KEY.encode()]
ID = b"01a226fb-a75c-7bbb-8f54-df640e0a3e78"
VALUES = rb"""
    %00 %ff %ed%a0%80 %f0%9f%92%a9 %c4%b0 % %0d%0aX:%20y ..%2f 0 -1 1e400 NaN 2147483648 %d9%a3 1_0 {}
    true infinity 0000-00-00 9999-12-31T23:59:59-23:59 0001-01-01T00:00:00%2b23:59 '%20OR%201=1-- ==
    """.split()
VALUES += [ID, b"", b"\xff", b"9" * 5000, b"a%40" * 40, b"lamp%20" * 20]
BODIES = rb"""
    []
    "x"
    {"%s": 1e400}
    {"%s": NaN}
    {"%s": "\u0000"}
    {"%s": "\ud800"}
    {"%s": "Lamp"}
    {"%s": "x", "%s": "x"}
    {"%s": {"a": [{}]}}
    {"__proto__": {}, "%s": "\u202e"}
    name,name""".splitlines()
BODIES += [b"", b"{", b"null", b'{"%s": "' + b"a" * 2_000_000 + b'"}']
BODIES += [b"\0", b"\xff\xfe[\0", b"[" * 100_000, b'{"%s":' * 70, b'{"%s": ' + b"9" * 5000]
BODIES += [b"name\n\0\n", b'name\n"x\n', b"name\nx,y\n", b"name\nLamp\n", b'{"%s": "\xed\xa0\x80"}']
FORM = b"multipart/form-data; boundary=x"
TYPES = [
    *[b"application/json"] * 3,
    b"text/csv",
    b"application/x-www-form-urlencoded",
    FORM,
    b"\xff",
]
OTHERS = b"""Content-Length: -1
Content-Length: 9999999999
Transfer-Encoding: chunked
Idempotency-Key: a
Idempotency-Key: \xff
If-Match: *
If-Match: "1", \xff
If-Match: W/"9", *, \x01
If-None-Match: "a",*
Range: bytes=9-1
X-Request-ID: \x1b[31m
traceparent: 00-\xff
Cookie: \xff=\xff;;
Authorization: Basic \xff
Origin: null
X-API-Key: \xff
Host: [::1
Host: evil.example
X-Forwarded-For: \xff,,
X-Forwarded-Proto: javascript
X-HTTP-Method-Override: TRACE
Accept: */*;q=\xff
Content-Encoding: br
a b: c""".splitlines()
OTHERS += [b"A: b\r\n c", b"X-Request-ID: " + b"{}" * 4000, b"Cookie: " + b"a=b; " * 3000]
OTHERS.append(b"Upgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13")
LINES = [b"GET / HTTP/1.0", b"* * HTTP/1.1", b"\x16\x03\x01", b"GET", b"GET / HTTP/9.9"]
PATHS = b"http://evil.example/ //evil.example/%2e%2e /../../etc/passwd /% /metrics/%00 \xff".split()
PATHS += [b"/" + b"a" * 30_000, b"/?" + b"a=" * 20_000, b"/?" + b"://:" * 10_000]
LINES += [b"GET " + path + b" HTTP/1.1" for path in PATHS]


def operations(address: str) -> list[tuple[bytes, str]]:
    prefix = API.rpartition("/")[0]
    document = httpx.get(f"{address}{prefix}/openapi.json", headers=HEADERS).json()
    paths = [(method, path) for path, methods in document["paths"].items() for method in methods]
    methods = [(method.upper().encode(), path) for method, path in paths]
    pages = [f"{prefix}/docs", "/metrics", "/", API]
    # Readiness is 503 if a server of the service is not running.
    return [each for each in methods if "ready" not in each[1]] + [(b"GET", page) for page in pages]


def requests(address: str) -> Iterator[bytes]:
    choose = random.Random(13).choice  # noqa: S311 - the same requests in each run
    known = operations(address)
    headers = [f"{name}: {value}".encode() for name, value in HEADERS.items()]
    for _ in range(REQUESTS):
        method, path = choose(known)
        parts = [
            choose([ID, *VALUES]) if "{" in part else part.encode() for part in path.split("/")
        ]
        names = [b"q", b"limit", b"offset", b"cursor", b"sort", b"status", b"created_from", b""]
        query = b"&".join(choose(names) + b"=" + choose(VALUES) for _ in range(choose([0, 1, 2])))
        target = b"/".join(parts) + choose([b"", b"", b"/", b"//"]) + b"?" + query
        body = choose(BODIES).replace(b"%s", choose([b"name", b"text", b"status", b"\\u0000"]))
        if (kind := choose(TYPES)) == FORM:
            body = b'--x\r\nContent-Disposition: form-data; name="\xff"; filename\r\n\r\n' + body
        line = choose([*[method + b" " + target + b" HTTP/1.1"] * 30, *LINES])
        length = b"Content-Length: %d" % len(body)
        given = [b"Host: test", f"X-API-Key: {KEY}".encode(), b"Content-Type: " + kind, length]
        extra = [choose(OTHERS) for _ in range(choose([0, 1, 1, 2]))]
        lines = [line, *headers, *given, *extra, b"Connection: close"]
        yield b"\r\n".join(lines) + b"\r\n\r\n" + body


async def send(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(LIMIT):
            return await reader.read()
    except ConnectionError:
        return b""  # the server does not read the rest of a body that it rejects
    finally:
        writer.close()


async def test_hostile_requests_find_no_error_and_no_internals(
    committing_url: URL, tmp_path: Path
) -> None:
    url = committing_url.render_as_string(hide_password=False)
    statuses = set()
    variables = {"DATABASE_URL": url, "API_KEYS": KEY}
    async with api(APPLICATION, folder=tmp_path, **variables) as (process, address):
        for request in requests(address):
            response = await send(urlsplit(address).port or 0, request)
            status = response[9:12]
            statuses.add(status)
            assert not status.startswith(b"5"), (request, response)
            found = [word for word in INTERNALS if word in response and word not in request]
            assert not found, (request, response)
        log = process.log_text

    assert {b"200", b"400", b"404"} <= statuses
    assert "Traceback" not in log, log
    assert KEY not in log, log
