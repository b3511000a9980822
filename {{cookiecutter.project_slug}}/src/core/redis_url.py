"""URLs of Redis or Valkey: a single server, Sentinel, or Cluster.

redis-py parses URLs of single servers. This module adds Sentinel and Cluster, and reports errors at
startup instead of at the first command.
"""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from src.core.postgres_url import LOCAL_HOSTS

_PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379}
_TLS = {"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile"}


@dataclass(frozen=True, kw_only=True)
class RedisURL:
    server: str = field(repr=False)  # for redis-py's `from_url`; may contain a password
    kind: str  # "sentinel", "cluster", or "" for a single server
    nodes: tuple[tuple[str, int], ...]  # the server, the Sentinels, or the Cluster's nodes
    service: str  # the Sentinels' name of the server
    is_protected: bool  # has a password or a certificate, or is on this machine

    @property
    def options(self) -> dict[str, Any]:
        """The options of the URL as arguments of redis-py, which takes no URL for Sentinels."""
        from redis.connection import SSLConnection, parse_url  # noqa: PLC0415 - loaded if used

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
    """Parse a URL. `rediss` means TLS, and `user:password@` may precede the host.

    - `redis://host:6379/0`
    - `unix:///path/to/socket?db=0`
    - `redis+sentinel://host:26379,host:26379/service/0`
    - `redis+cluster://host:6379,host:6379`

    Raises ValueError. The message does not contain the URL, which may have a password.
    """
    try:
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError:
        raise ValueError("must be a URL like redis://user:password@host:6379/0") from None
    scheme, _, kind = parts.scheme.partition("+")
    if parts.scheme != "unix" and (scheme not in {"redis", "rediss"} or kind not in _PORTS):
        raise ValueError(
            "must start with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
        )
    if unknown := options.keys() - {"db", "password"} - (_TLS if scheme == "rediss" else set()):
        raise ValueError(f"has unsupported options: {', '.join(sorted(unknown))}")
    if options.get("ssl_cert_reqs", "none") not in {"none", "optional", "required"}:
        raise ValueError("ssl_cert_reqs must be none, optional or required")
    if parts.scheme == "unix":
        if not parts.path or not options.get("db", "0").isdecimal():
            raise ValueError("must be a URL like unix:///path/to/socket?db=0")
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
            raise ValueError("must end with /service, the name that Sentinel monitors")
    db = options.get("db", path or "0")
    if not db.isdecimal() or (kind == "cluster" and int(db)):
        raise ValueError("the database must be a number; a Cluster only has database 0")
    server = parts._replace(netloc=user + at + hosts.partition(",")[0], path=f"/{db}").geturl()
    is_local = not kind and nodes[0][0] in LOCAL_HOSTS
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
        raise ValueError("each host must have a name, and each port must be a number up to 65535")
    return host, port
