"""Checks of the settings of e-mail."""

from collections.abc import Iterator
from email.headerregistry import Address
from email.policy import default as policy
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from src.core.postgres_url import LOCAL_HOSTS

if TYPE_CHECKING:
    from src.core.config import Settings

TLSMode = Literal["starttls", "implicit", "none"]

_ADDRESS = "must be one address like ann@example.com or Ann <ann@example.com>"


def parse_address(text: str) -> Address:
    """Parse `ann@example.com`, or `Ann <ann@example.com>`. Raises ValueError.

    The domain becomes ASCII, so that each server accepts it.
    """
    try:
        header: Any = policy.header_factory("To", text)
        [address] = [] if header.defects else list(header.addresses)
        domain = address.domain.encode("idna").decode("ascii")
        if address.username and domain:
            return Address(address.display_name, address.username, domain)
    except (AttributeError, IndexError, ValueError):  # Python's parser raises them all
        pass
    raise ValueError(_ADDRESS)


def check_address(text: str) -> str:
    parse_address(text)
    return text


def check_url(text: str) -> str:
    """Return the URL without a slash at its end. Raises ValueError."""
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or parts.username or parts.query or parts.fragment:
        raise ValueError("must be a URL like https://www.example.com")
    return text.rstrip("/")


def production_errors(settings: "Settings") -> Iterator[str]:
    if settings.SMTP_HOST is None:
        yield "SMTP_HOST must be set"
    if not settings.is_set("MAIL_FROM"):
        yield "MAIL_FROM must be set"
    if urlsplit(settings.PUBLIC_URL).scheme != "https" or not settings.is_set("PUBLIC_URL"):
        yield "PUBLIC_URL must be the https:// URL of your web pages"
    if (settings.SMTP_USER is None) != (settings.SMTP_PASSWORD is None):
        yield "SMTP_USER and SMTP_PASSWORD must be set together"
    is_remote = settings.SMTP_HOST not in {None, *LOCAL_HOSTS}
    if is_remote and settings.SMTP_TLS == "none" and settings.SMTP_PASSWORD is not None:
        yield "SMTP_TLS must be starttls or implicit if SMTP_PASSWORD is sent to another machine"
