"""Where Redis or Valkey is: one server, several that Sentinels watch over, or a Cluster."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Node = tuple[str, int]
Kind = Literal["server", "sentinel", "cluster"]

_PORT = 6379
_SENTINEL_PORT = 26379
_KINDS: dict[str, Kind] = {"": "server", "sentinel": "sentinel", "cluster": "cluster"}
_TLS_OPTIONS = {
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
}
_LOCAL = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, kw_only=True)
class RedisURL:
    """What a URL says; `nodes` are the Sentinels where there are some."""

    kind: Kind = "server"
    nodes: tuple[Node, ...] = ()
    path: str | None = None  # of a Unix socket, instead of nodes
    service: str | None = None  # what the Sentinels call the server
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_options: Mapping[str, str | bool] = field(default_factory=dict)

    @property
    def address(self) -> dict[str, Any]:
        """Where the one server is, as arguments of redis-py's clients."""
        if self.path:
            return {"unix_socket_path": self.path}
        host, port = self.nodes[0]
        return {"host": host, "port": port}

    @property
    def account(self) -> dict[str, Any]:
        """As arguments too. It is the server's; Sentinels that ask for one are rare."""
        return {"username": self.username, "password": self.password}

    @property
    def encryption(self) -> dict[str, Any]:
        """As arguments too, for the server and for those who lead to it."""
        return {"ssl": True, **self.tls_options} if self.tls else {}

    @property
    def is_protected(self) -> bool:
        """Whether nobody else on the network can use it: it knows us, or is on this machine."""
        is_local = self.kind == "server" and all(host in _LOCAL for host, _ in self.nodes)
        return is_local or bool(self.password) or "ssl_certfile" in self.tls_options


def parse(text: str) -> RedisURL:
    """Parse any of these, with `rediss` for TLS, and `user:password@` before the host.

    - `redis://host:6379/0`
    - `unix:///path/to/socket?db=0`
    - `redis+sentinel://host:26379,host:26379/service/0`
    - `redis+cluster://host:6379,host:6379`

    Raises ValueError, without the URL in its message: it may hold a password.
    """
    try:
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError:
        raise ValueError("not a URL like redis://user:password@host:6379/0") from None
    scheme, _, suffix = parts.scheme.partition("+")
    if parts.scheme == "unix":
        return _parse_unix(parts, options)
    if scheme not in {"redis", "rediss"} or suffix not in _KINDS:
        raise ValueError(
            "it must begin with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
        )
    return _parse_nodes(parts, _KINDS[suffix], options, tls=scheme == "rediss")


def _parse_unix(parts: SplitResult, options: dict[str, str]) -> RedisURL:
    username, password = _parse_user(parts)
    db = options.pop("db", "0")
    password = password or options.pop("password", None)  # redis-py takes it there too
    if not parts.path:
        raise ValueError("it names no socket")
    _refuse(options)
    return RedisURL(
        path=unquote(parts.path), db=_parse_db(db), username=username, password=password
    )


def _parse_nodes(parts: SplitResult, kind: Kind, options: dict[str, str], *, tls: bool) -> RedisURL:
    username, password = _parse_user(parts)
    service, db = _parse_path(parts.path, kind)
    port = _SENTINEL_PORT if kind == "sentinel" else _PORT
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if kind == "server" and len(hosts) > 1:
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    return RedisURL(
        kind=kind,
        nodes=tuple(_parse_node(host, port) for host in hosts),
        service=service,
        db=_parse_db(options.pop("db", db)),
        username=username,
        password=password,
        tls=tls,
        tls_options=_parse_tls(options) if tls else _refuse(options),
    )


def _parse_user(parts: SplitResult) -> tuple[str | None, str | None]:
    username, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return unquote(username) or None, unquote(password) or None


def _parse_node(text: str, default_port: int) -> Node:
    try:
        node = urlsplit(f"//{text}")
        port = node.port
    except ValueError:
        raise ValueError("its port must be a number up to 65535") from None
    if not node.hostname:
        raise ValueError("it names no host")
    return unquote(node.hostname), default_port if port is None else port


def _parse_path(path: str, kind: Kind) -> tuple[str | None, str]:
    first, _, rest = path.strip("/").partition("/")
    if kind == "sentinel":
        if not first:
            raise ValueError("a Sentinel's URL ends with /service, the name that it watches")
        return unquote(first), rest or "0"
    if kind == "cluster" and first not in {"", "0"}:
        raise ValueError("a Cluster has no database but 0")
    return None, first or "0"


def _parse_db(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("its database must be a number")
    return int(text)


def _parse_tls(options: dict[str, str]) -> dict[str, str | bool]:
    _refuse({name: value for name, value in options.items() if name not in _TLS_OPTIONS})
    chosen: dict[str, str | bool] = dict(options)
    if "ssl_check_hostname" in options:
        chosen["ssl_check_hostname"] = options["ssl_check_hostname"].lower() in {"1", "true", "yes"}
    if options.get("ssl_cert_reqs", "required") not in {"none", "optional", "required"}:
        raise ValueError("ssl_cert_reqs must be none, optional or required")
    return chosen


def _refuse(options: dict[str, str]) -> dict[str, str | bool]:
    if options:
        raise ValueError(f"not supported here: {', '.join(sorted(options))}")
    return {}
