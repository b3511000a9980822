from typing import Any

import pytest
from redis import SSLConnection

from src.core import redis_url
from src.core.config import InvalidSettingsError, load_settings
from src.tasks.engine.brokers.redis import create_client


@pytest.mark.parametrize("name", ["REDIS_URL", "DRAMATIQ_REDIS_URL"])
@pytest.mark.parametrize(
    ("value", "is_safe"),
    [
        ("redis://localhost", True),
        ("unix:///run/redis", True),
        ("redis://:secret@queue", True),
        ("redis://queue", False),
        ("redis+sentinel://localhost/main", False),
    ],
)
def test_production_wants_a_password_of_the_queues_redis(
    production: pytest.MonkeyPatch, name: str, value: str, *, is_safe: bool
) -> None:
    production.setenv("DRAMATIQ_BROKER", "redis")
    production.setenv(name, value)

    if is_safe:
        assert load_settings().is_deployed
    else:
        with pytest.raises(InvalidSettingsError, match="task queue's Redis must have a password"):
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


def test_a_queue_cannot_be_in_a_cluster(env: pytest.MonkeyPatch) -> None:
    env.setenv("DRAMATIQ_BROKER", "redis")
    env.setenv("DRAMATIQ_REDIS_URL", "redis+cluster://queue")

    with pytest.raises(InvalidSettingsError, match="cannot be in a Redis Cluster"):
        load_settings()


@pytest.mark.parametrize("namespace", ["a:b", "a*", "{a}"])
def test_a_namespace_is_a_plain_word(env: pytest.MonkeyPatch, namespace: str) -> None:
    """Nothing that a pattern or a separator is made of."""
    assert load_settings().DRAMATIQ_NAMESPACE
    env.setenv("DRAMATIQ_NAMESPACE", namespace)

    with pytest.raises(InvalidSettingsError, match="DRAMATIQ_NAMESPACE"):
        load_settings()


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("unix:///run/redis?db=2", {"path": "/run/redis", "db": 2}),
        ("rediss://me:secret@queue:1/3", {"host": "queue", "username": "me", "password": "secret"}),
        ("rediss+sentinel://:secret@one,two/main/3", {"db": 3, "password": "secret"}),
    ],
)
def test_client_gives_up_in_time(url: str, options: dict[str, object]) -> None:
    """It repeats nothing: a fetch whose reply was lost has taken messages from the queue."""
    found = create_client(redis_url.parse(url)).connection_pool.connection_kwargs

    assert found.items() >= options.items()
    assert found["socket_timeout"] == 5
    assert found["retry"].get_retries() == 0


def test_sentinels_are_spoken_to_as_the_server_is_but_without_its_password() -> None:
    client = create_client(redis_url.parse("rediss+sentinel://:secret@one,two/main/3"))
    pool: Any = client.connection_pool

    assert pool.service_name == "main"
    for sentinel in pool.sentinel_manager.sentinels:
        assert sentinel.connection_pool.connection_class is SSLConnection
        assert sentinel.connection_pool.connection_kwargs["socket_timeout"] == 5
        assert sentinel.connection_pool.connection_kwargs.get("password") is None
