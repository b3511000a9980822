"""Where Redis or Valkey is: one server, the one that Sentinels name, or a Cluster.

redis-py parses the URL of a server. Here stands what it does not do: several hosts, and faults that
show when the process starts rather than with the first command.
"""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

NAMESPACE = r"^[A-Za-z0-9._-]+$"  # what keys may begin with
_PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379}
_TLS = {"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile"}
_LOCAL = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, kw_only=True)
class RedisURL:
    server: str = field(repr=False)  # for redis-py's `from_url`; it may hold a password
    kind: str  # "sentinel", "cluster", or "" for a server
    nodes: tuple[tuple[str, int], ...]  # the server, the Sentinels, or those of the Cluster
    service: str  # what the Sentinels call the server
    is_protected: bool  # by a password or a certificate, or by being on this machine

    @property
    def options(self) -> dict[str, Any]:
        """What the URL says besides the host, as redis-py's arguments: Sentinels have no URL."""
        from redis.connection import SSLConnection, parse_url  # noqa: PLC0415 - settings need none

        found = {k: v for k, v in parse_url(self.server).items() if k not in {"host", "port"}}
        is_tls = found.pop("connection_class", None) is SSLConnection
        return {**found, "ssl": True} if is_tls else found

    @property
    def tls_options(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name.startswith("ssl")}


def of_parts(host: str, port: int, db: int, password: str) -> RedisURL:
    host = f"[{host}]" if ":" in host else host
    user = f":{quote(password, safe='')}@" if password else ""
    return parse(f"redis://{user}{host}:{port}/{db}")


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
    scheme, _, kind = parts.scheme.partition("+")
    if parts.scheme != "unix" and (scheme not in {"redis", "rediss"} or kind not in _PORTS):
        raise ValueError(
            "it must begin with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
        )
    if unknown := options.keys() - {"db", "password"} - (_TLS if scheme == "rediss" else set()):
        raise ValueError(f"not supported here: {', '.join(sorted(unknown))}")
    if options.get("ssl_cert_reqs", "none") not in {"none", "optional", "required"}:
        raise ValueError("ssl_cert_reqs must be none, optional or required")
    if parts.scheme == "unix":
        if not parts.path or not options.get("db", "0").isdecimal():
            raise ValueError("it must be like unix:///path/to/socket?db=0")
        return RedisURL(server=text, kind="", nodes=(), service="", is_protected=True)
    return _parse_hosts(parts._replace(scheme=scheme), kind, options)


def _parse_hosts(parts: SplitResult, kind: str, options: dict[str, str]) -> RedisURL:
    user, at, hosts = parts.netloc.rpartition("@")
    nodes = tuple(_parse_node(each, kind) for each in hosts.split(","))
    if not kind and len(nodes) > 1:
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    path, service = parts.path.strip("/"), ""
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise ValueError("a Sentinel's URL ends with /service, the name that it watches")
    db = options.get("db", path or "0")
    if not db.isdecimal() or (kind == "cluster" and int(db)):
        raise ValueError("its database must be a number, and in a Cluster 0")
    server = parts._replace(netloc=user + at + hosts.partition(",")[0], path=f"/{db}").geturl()
    is_local = not kind and nodes[0][0] in _LOCAL
    has_secret = bool(parts.password or options.get("password") or options.get("ssl_certfile"))
    return RedisURL(
        server=server,
        kind=kind,
        nodes=nodes,
        service=unquote(service),
        is_protected=is_local or has_secret,
    )


def _parse_node(text: str, kind: str) -> tuple[str, int]:
    try:
        node = urlsplit(f"//{text}")
        host, port = unquote(node.hostname or ""), node.port or _PORTS[kind]
    except ValueError:
        host = ""
    if not host:
        raise ValueError("it must name each host, and ports as numbers up to 65535")
    return host, port
