"""Hostile requests cause no 5xx and no traceback, and many requests do not fill the memory."""

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from sqlalchemy import URL

from tests.faults.servers import api
from tests.fixtures.commands import LIMIT, Process
from tests.fixtures.environment import API
from tests.fixtures.notes import NOTES

pytestmark = pytest.mark.slow
APPLICATION = "tests.fixtures.client:application"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)

PATHS = [
    b"/%00", b"/%ff", b"/%", b"/../../etc/passwd", b"//evil.example/%2e%2e", b"/" + b"a" * 30_000,
    b"/metrics/%00", b"?" + b"a=" * 20_000, b"?" + b"://:" * 10_000, b"\xff\xfe",
]  # fmt: skip
IDS = [b"%00", b"%ff", b"-1", b"9" * 400, b"' OR 1=1 --", b"%F0%9F%92%A9", b"..%2f", b"{}"]
BODIES = [
    b"", b"{", b"null", b"[]", b"\xff\xfe", b"\x00", b'{"text": "\\u0000"}', b'{"text": "\\ud800"}',
    b'{"text": NaN}', b'{"text": 1e999}', b'{"text": ' + b"9" * 5_000 + b"}", b'{"text": {}}',
    b"[" * 50_000, b'{"a":' * 50_000, b'{"text": "' + b"a" * 2_000_000 + b'"}',
    b'{"__proto__": {}, "text": "\\u202e"}', b'{"text": "a", "text": ["b"]}',
]  # fmt: skip
HEADERS = [
    b"Content-Type: application/json; charset=none", b"Content-Type: \xff", b"Content-Type: a/b",
    b"Content-Encoding: gzip", b"Idempotency-Key: \xff", b"Idempotency-Key: " + b"k" * 5_000,
    b"Idempotency-Key:", b'If-Match: "', b'If-Match: W/"9", *, \x01', b"If-None-Match: \xff",
    b"X-Request-ID: " + b"{}" * 4_000, b"traceparent: 00-0-0-zz", b"X-Forwarded-For: %00, ::::",
    b"X-Forwarded-Proto: javascript", b"Host: a b", b"Origin: null", b"Range: bytes=9-1",
    b"Cookie: " + b"a=b; " * 3_000, b"Authorization: Basic \xff", b"Expect: 100-continue",
    b"X-HTTP-Method-Override: TRACE", b"Accept: */*;q=\xff", b"X-API-Key: \xff\x00",
]  # fmt: skip
RAW = [
    b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"POST " + NOTES.encode() + b" HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST " + NOTES.encode() + b" HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    b"POST " + NOTES.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST " + NOTES.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
]  # fmt: skip


def request(method: bytes, path: bytes, body: bytes = b"", header: bytes = b"A: b") -> bytes:
    lines = [method + b" " + path + b" HTTP/1.1", header, b"Content-Length: %d" % len(body)]
    usual = (b"Host: test", b"Content-Type: application/json")
    lines += [each for each in usual if not header.startswith(each.split(b":")[0])]
    return b"\r\n".join((*lines, b"", body))


def hostile() -> Iterator[bytes]:
    notes = NOTES.encode()
    for path in PATHS:
        yield request(b"GET", path)
        yield request(b"GET", notes + path)
    for method in (b"GET", b"PATCH", b"DELETE"):
        for note in IDS:
            yield request(method, notes + note, b'{"text": "a"}')
    for body in BODIES:
        yield request(b"POST", notes, body)
        yield request(b"POST", notes, body, b"Idempotency-Key: %d" % len(body))
    for header in HEADERS:
        yield request(b"GET", notes, header=header)
        yield request(b"POST", notes, b'{"text": "a"}', header)
    for method in (b"TRACE", b"CONNECT", b"PROPFIND", b"get", b"OPTIONS", b"\xff"):
        yield request(method, notes)
    yield from RAW


async def send(address: str, data: bytes) -> bytes:
    """Return the status line, or nothing if the server closes the connection without one."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.readline(), LIMIT)
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


async def test_hostile_input_is_refused(committing_url: URL, tmp_path: Path) -> None:
    url = committing_url.render_as_string(hide_password=False)
    async with api(APPLICATION, folder=tmp_path, DATABASE_URL=url) as (process, address):
        failed = [
            (data[:200], status)
            for data in hostile()
            if (status := await send(address, data)).startswith(b"HTTP/1.1 5")
        ]
        live = await send(address, request(b"GET", f"{API}/health/live".encode()))

    assert failed == []
    assert live == b"HTTP/1.1 200 OK\r\n"
    assert "Traceback" not in process.log_text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_many_requests_do_not_fill_the_memory(committing_url: URL, tmp_path: Path) -> None:
    """They have different paths, queries, request IDs and trace IDs."""
    url = committing_url.render_as_string(hide_password=False)
    variables = {"DATABASE_URL": url, "LOG_LEVEL": "WARNING"}
    async with api(APPLICATION, folder=tmp_path, **variables) as (process, address):
        await send_many(address, 2_000)
        before = resident_kilobytes(process)
        await send_many(address, 6_000)
        grown = resident_kilobytes(process) - before

    assert grown < 10_000


async def send_many(address: str, count: int) -> None:
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    for number in range(count):
        path = NOTES if number % 3 else f"/{number}?q={number}"
        head = f"GET {path} HTTP/1.1\r\nHost: test\r\nX-Request-ID: {uuid4()}\r\n"
        writer.write(f"{head}traceparent: 00-{uuid4().hex}-{'1' * 16}-01\r\n\r\n".encode())
        length = LENGTH.search(await reader.readuntil(b"\r\n\r\n"))
        assert length
        await reader.readexactly(int(length[1]))
    writer.close()


def resident_kilobytes(process: Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])
