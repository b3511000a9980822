"""Checks of RabbitMQ URLs."""

from urllib.parse import urlsplit

from src.core.postgres_url import LOCAL_HOSTS

DEFAULT = "amqp://guest:guest@localhost:5672"


def check(text: str) -> None:
    """Raise ValueError if this is not a RabbitMQ URL. The message does not contain the URL."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("the port must be a number up to 65535") from None
    if parts.scheme not in {"amqp", "amqps"} or not parts.hostname or port == 0:
        raise ValueError("must be a URL like amqp://user:password@host:5672/vhost, or amqps://...")


def is_protected(text: str) -> bool:
    """Whether the server is on this machine, or the URL has a password other than the default."""
    parts = urlsplit(text)
    return parts.hostname in LOCAL_HOSTS or (parts.password or "") not in {"", "guest"}
