import pytest

from src.core.config import InvalidSettingsError, load_settings


def refusal() -> str:
    """Return why the process does not start; nothing if it does."""
    try:
        load_settings()
    except InvalidSettingsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "value", "is_safe"),
    [
        ("REDIS_HOST", "localhost", True),
        ("REDIS_HOST", "cache", False),
        ("REDIS_URL", "redis://:secret@cache", True),
        ("REDIS_URL", "redis://cache", False),
        ("REDIS_URL", "unix:///run/redis", True),
        ("REDIS_URL", "rediss://cache?ssl_certfile=/a&ssl_keyfile=/b", True),
        ("REDIS_URL", "redis+sentinel://localhost/main", False),  # the server may be elsewhere
    ],
)
def test_production_wants_a_password_on_the_network(
    env: pytest.MonkeyPatch, name: str, value: str, *, is_safe: bool
) -> None:
    env.setenv("ENV", "production")
    env.setenv("API_KEYS", "a-key-of-sixteen-characters")
    env.setenv("POSTGRES_PASSWORD", "correct horse battery staple")
    env.setenv("CACHE_BACKEND_TYPE", "redis")
    env.setenv(name, value)

    assert ("REDIS_PASSWORD must be set" in refusal()) is not is_safe

    env.setenv("CACHE_BACKEND_TYPE", "memory")
    assert "REDIS_PASSWORD" not in refusal()


@pytest.mark.parametrize("namespace", ["a:b", "a*", "{a}"])
def test_a_namespace_is_a_plain_word(env: pytest.MonkeyPatch, namespace: str) -> None:
    """Nothing that a pattern, a separator or a Cluster takes for something else."""
    assert load_settings().CACHE_NAMESPACE
    env.setenv("CACHE_NAMESPACE", namespace)

    with pytest.raises(InvalidSettingsError, match="CACHE_NAMESPACE"):
        load_settings()
