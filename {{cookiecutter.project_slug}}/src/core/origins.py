"""Origins of web pages, as in `CORS_ORIGINS`: `https://app.example.com`, `https://*.example.com`."""

import re
from urllib.parse import urlsplit

ANY = "*"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_FORMAT = (
    "is not an origin. Write a scheme and a host, such as https://app.example.com,"
    " http://localhost:3000 or https://*.example.com, and separate origins with commas"
)


def normalize(origins: list[str]) -> list[str]:
    """Return the origins as browsers send them. Raises ValueError for what can match none."""
    normalized = list(dict.fromkeys(map(_normalize, origins)))
    if ANY in normalized and len(normalized) > 1:
        raise ValueError("'*' allows every origin. Use it alone, or list the origins without it")
    return normalized


def pattern(origins: list[str]) -> str | None:
    """Return a regular expression for the origins with a wildcard, or None if there is none."""
    wildcards = [re.escape(each) for each in origins if "*." in each]
    return "|".join(wildcards).replace(r"\*\.", r"([a-z0-9_-]+\.)+") or None


def _normalize(origin: str) -> str:
    if origin == ANY:
        return origin
    try:
        url = urlsplit(origin)
        host = (url.hostname or "").encode("idna").decode()
        port = url.port
    except ValueError:
        raise ValueError(_error(origin, _FORMAT)) from None
    if ":" in host:
        host = f"[{host}]"
    if not url.scheme or "@" in url.netloc or not _HOST.fullmatch(host):
        raise ValueError(_error(origin, _FORMAT))
    if url.path.strip("/") or url.query or url.fragment:
        raise ValueError(_error(origin, "must not have a path: an origin ends after host and port"))
    if host.startswith("*.") and "." not in host.removeprefix("*.") and host != "*.localhost":
        raise ValueError(_error(origin, "would allow every site of a top-level domain"))
    is_default = port is None or port == _DEFAULT_PORTS.get(url.scheme)
    return f"{url.scheme}://{host}" + ("" if is_default else f":{port}")


def _error(origin: str, problem: str) -> str:
    return f"'{'…' if '@' in origin else origin}' {problem}"
