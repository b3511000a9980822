"""Origins of web pages, as in `CORS_ORIGINS`: `https://app.example.com`, `https://*.example.com`."""

import re

from pydantic import AnyUrl, ValidationError

ANY = "*"
# The host of `https://*.com` is refused: it would allow every site of a top-level domain.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([^*/?#@]+|\*\.localhost(:\d+)?|\*(\.[^*/?#@.]+){2,})")


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
        normal = str(AnyUrl(origin)).removesuffix("/")
    except ValidationError:
        normal = ""
    if not _ORIGIN.fullmatch(normal):
        raise ValueError(
            f"'{origin.rpartition('@')[2]}' is not an origin. Write a scheme and a host without a"
            " path, such as https://app.example.com, http://localhost:3000 or"
            " https://*.example.com, and separate origins with commas"
        )
    return normal
