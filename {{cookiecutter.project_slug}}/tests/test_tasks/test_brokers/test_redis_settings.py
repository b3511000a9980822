from typing import Any

import pytest
from redis import SSLConnection

from src.core import redis_url
from src.core.config import load_settings
from src.tasks.engine.brokers.redis import create_client
from tests.fixtures.environment import settings_error


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("REDIS_URL", "redis://queue", "DRAMATIQ_REDIS_URL must have a password"),
        ("DRAMATIQ_REDIS_URL", "redis://queue", "DRAMATIQ_REDIS_URL must have a password"),
        ("DRAMATIQ_REDIS_URL", "redis+cluster://:a@queue", "does not support Redis Cluster"),
        ("DRAMATIQ_NAMESPACE", "a:b", "DRAMATIQ_NAMESPACE"),
        ("DRAMATIQ_NAMESPACE", "a*", "DRAMATIQ_NAMESPACE"),
        ("DRAMATIQ_NAMESPACE", "{a}", "DRAMATIQ_NAMESPACE"),
    ],
)
def test_production_rejects_unsafe_settings(
    env: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    env.setenv("ENV", "production")
    env.setenv("DRAMATIQ_BROKER", "redis")
    env.setenv("REDIS_URL", "redis://:secret@queue")
    assert words not in settings_error()
    env.setenv(name, value)
    assert words in settings_error()


def test_dramatiq_redis_url_overrides_redis_url(
    env: pytest.MonkeyPatch,
) -> None:
    env.setenv("REDIS_URL", "redis://one")
    assert load_settings().queue_redis_url.server == "redis://one/0"
    env.setenv("DRAMATIQ_REDIS_URL", "redis://two/3")

    settings = load_settings()
    assert settings.queue_redis_url.server == "redis://two/3"
    assert settings.redis_url.server == "redis://one/0"


@pytest.mark.parametrize(
    "url", ["unix:///run/redis", "rediss://queue", "rediss+sentinel://one,two/main"]
)
def test_client_has_timeouts_and_no_retries(url: str) -> None:
    """A fetch has removed messages from the queue, even if its reply is lost."""
    found = create_client(redis_url.parse(url)).connection_pool.connection_kwargs

    assert found["socket_timeout"] == 5
    assert found["retry"].get_retries() == 0


def test_sentinels_use_tls_and_timeouts_but_not_the_password_of_the_server() -> None:
    client = create_client(redis_url.parse("rediss+sentinel://:secret@one,two/main/3"))
    pool: Any = client.connection_pool

    assert pool.service_name == "main"
    assert pool.connection_kwargs.items() >= {"db": 3, "password": "secret"}.items()
    for sentinel in pool.sentinel_manager.sentinels:
        assert sentinel.connection_pool.connection_class is SSLConnection
        assert sentinel.connection_pool.connection_kwargs["socket_timeout"] == 5
        assert sentinel.connection_pool.connection_kwargs.get("password") is None
