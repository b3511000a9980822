"""Where RabbitMQ is, and whether others on the network may use it too."""

from urllib.parse import urlsplit

DEFAULT = "amqp://guest:guest@localhost:5672"
_LOCAL = {"localhost", "127.0.0.1", "::1"}


def check(text: str) -> None:
    """Raise ValueError for what is no URL of RabbitMQ; the URL is not in its message."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("its port must be a number up to 65535") from None
    if parts.scheme not in {"amqp", "amqps"} or not parts.hostname or port == 0:
        raise ValueError("it must be like amqp://user:password@host:5672/vhost, or amqps://...")


def is_protected(text: str) -> bool:
    """Whether nobody else on the network can use it: it knows us, or is on this machine."""
    parts = urlsplit(text)
    return parts.hostname in _LOCAL or (parts.password or "") not in {"", "guest"}
