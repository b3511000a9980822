"""An OpenID Connect issuer on loopback, with a login, which tests can make misbehave."""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc.jwk import ECKey, Key
from joserfc.jws import JWSRegistry

AUDIENCE = "https://api.example.com"
CLIENT_ID = "docs"
JWKS_PATH = "/certs"
DISCOVERY_PATH = "/.well-known/openid-configuration"


class Response(Exception):  # noqa: N818 - a handler raises it to end the request
    """What the issuer sends instead of a document."""

    def __init__(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        super().__init__()
        self.status, self.body, self.headers = status, body, headers


class Issuer:
    """Signs tokens with its newest key. `requests` has the paths of all requests."""

    def __init__(self, port: int, path: str = "") -> None:
        self.url = f"http://127.0.0.1:{port}{path}"
        self.audience = AUDIENCE
        self.requests: list[str] = []
        self.keys: dict[str, Key] = {}
        self.jwks: list[Any] = []
        self.discovery: dict[str, Any] = {}  # overrides of members
        self.delay = 0.0  # of each response, in seconds
        self.override: Response | None = None  # sent for each path
        self.overrides: dict[str, Response] = {}  # by path
        self.codes: dict[str, dict[str, str]] = {}
        self.rotate()

    def rotate(self, *, keep: bool = False) -> None:
        """Sign with another key from now on. Publish the old ones too, if `keep`."""
        self.publish(ECKey.generate_key(), keep=keep)

    def publish(self, key: Key, *, keep: bool = False, **parameters: Any) -> None:
        self.keys = self.keys if keep else {}
        key_id = secrets.token_hex(4)
        public = key.as_dict(private=False, kid=key_id, use="sig", **parameters)
        self.jwks = [*(self.jwks if keep else []), public]
        self.keys[key_id] = key

    def token(
        self,
        scope: str | None = None,
        *,
        algorithm: str = "ES256",
        key: Key | None = None,
        header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """Return a signed token. Claims and headers with the value None are left out.

        Numbers in `exp`, `nbf` and `iat` are seconds from now.
        """
        key_id, newest = list(self.keys.items())[-1]
        members = {
            "iss": self.url,
            "sub": "user-1",
            "aud": AUDIENCE,
            "iat": 0,
            "exp": 300,
            "scope": scope,
            **claims,
        }
        for name in ("exp", "iat", "nbf"):
            if type(members.get(name)) in {int, float}:  # not a boolean
                members[name] += int(time.time())
        headers = {"alg": algorithm, "kid": key_id, "typ": "at+jwt", **(header or {})}
        return sign(_without_none(headers), _without_none(members), key or newest)


def _without_none(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def sign(header: Mapping[str, Any], claims: Mapping[str, Any] | bytes, key: Key | None) -> str:
    """Return a JWT. Without a key, the signature is empty."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    signed = b".".join(map(encode, (json.dumps(header).encode(), payload)))
    signature = JWSRegistry.algorithms[header["alg"]].sign(signed, key) if key else b""
    return b".".join([signed, encode(signature)]).decode()


def encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@contextmanager
def serve_issuer(path: str = "") -> Iterator[Issuer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.issuer = issuer = Issuer(server.server_port, path)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    @property
    def issuer(self) -> Issuer:
        issuer: Issuer = self.server.issuer  # type: ignore[attr-defined]
        return issuer

    def log_message(self, *_: Any) -> None:
        """Write nothing."""

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def do_OPTIONS(self) -> None:
        self._send(Response(204))

    def _respond(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path.removeprefix(urlsplit(self.issuer.url).path.rstrip("/"))
        self.issuer.requests.append(path)
        time.sleep(self.issuer.delay)
        try:
            if override := self.issuer.override or self.issuer.overrides.get(path):
                raise override
            self._send(Response(200, json.dumps(self._document(path, parts.query)).encode()))
        except Response as response:
            self._send(response)

    def _document(self, path: str, query: str) -> dict[str, Any]:
        url = self.issuer.url.rstrip("/")
        match path:
            case "/.well-known/openid-configuration":
                return {
                    "issuer": self.issuer.url,
                    "jwks_uri": f"{url}{JWKS_PATH}",
                    "authorization_endpoint": f"{url}/authorize",
                    "token_endpoint": f"{url}/token",
                    **self.issuer.discovery,
                }
            case "/certs":
                return {"keys": self.issuer.jwks}
            case "/authorize":
                raise self._authorize({name: value[0] for name, value in parse_qs(query).items()})
            case "/token":
                return self._token()
        raise Response(404)

    def _authorize(self, query: dict[str, str]) -> Response:
        if query["client_id"] != CLIENT_ID or query["code_challenge_method"] != "S256":
            return Response(400)
        code = secrets.token_hex()
        self.issuer.codes[code] = query
        answer = urlencode({"code": code, "state": query["state"]})
        return Response(302, Location=f"{query['redirect_uri']}?{answer}")

    def _token(self) -> dict[str, Any]:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = {name: value[0] for name, value in parse_qs(body).items()}
        started = self.issuer.codes.pop(form["code"], None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = encode(digest).decode()
        if started is None or started["code_challenge"] != challenge:
            raise Response(400, b'{"error": "invalid_grant"}')
        scope = started["scope"]
        token = self.issuer.token(scope, sub="browser")
        return {"access_token": token, "token_type": "Bearer", "expires_in": 300, "scope": scope}

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        headers = {"Content-Type": "application/json", **response.headers}
        if origin := self.headers.get("Origin"):
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Headers"] = "authorization, x-requested-with"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(response.body)
        except ConnectionError:
            return  # the client has read enough
