import pytest

from src.core.config import InvalidSettingsError, load_settings


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
