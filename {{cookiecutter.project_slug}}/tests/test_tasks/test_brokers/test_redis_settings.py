from typing import Any

import pytest
from redis import SSLConnection

from src.core import redis_url
from src.core.config import InvalidSettingsError, load_settings
from src.tasks.engine.brokers.redis import create_client


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("REDIS_URL", "redis://queue", "task queue's Redis must have a password"),
        ("DRAMATIQ_REDIS_URL", "redis://queue", "task queue's Redis must have a password"),
        ("DRAMATIQ_REDIS_URL", "redis+cluster://:a@queue", "cannot be in a Redis Cluster"),
        ("DRAMATIQ_NAMESPACE", "a:b", "DRAMATIQ_NAMESPACE"),
        ("DRAMATIQ_NAMESPACE", "a*", "DRAMATIQ_NAMESPACE"),
        ("DRAMATIQ_NAMESPACE", "{a}", "DRAMATIQ_NAMESPACE"),
    ],
)
def test_production_refuses(
    production: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    production.setenv("DRAMATIQ_BROKER", "redis")
    production.setenv("REDIS_URL", "redis://:secret@queue")
    assert load_settings().is_deployed
    production.setenv(name, value)

    with pytest.raises(InvalidSettingsError, match=words):
        load_settings()


def test_the_queue_is_in_the_redis_of_everything_unless_it_has_its_own(
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
def test_client_gives_up_in_time(url: str) -> None:
    """It repeats nothing: a fetch whose reply was lost has taken messages from the queue."""
    found = create_client(redis_url.parse(url)).connection_pool.connection_kwargs

    assert found["socket_timeout"] == 5
    assert found["retry"].get_retries() == 0


def test_sentinels_are_spoken_to_as_the_server_is_but_without_its_password() -> None:
    client = create_client(redis_url.parse("rediss+sentinel://:secret@one,two/main/3"))
    pool: Any = client.connection_pool

    assert pool.service_name == "main"
    assert pool.connection_kwargs.items() >= {"db": 3, "password": "secret"}.items()
    for sentinel in pool.sentinel_manager.sentinels:
        assert sentinel.connection_pool.connection_class is SSLConnection
        assert sentinel.connection_pool.connection_kwargs["socket_timeout"] == 5
        assert sentinel.connection_pool.connection_kwargs.get("password") is None
