import pytest

from tests.fixtures.environment import settings_error


@pytest.mark.parametrize(
    ("name", "value", "is_safe"),
    [
        ("REDIS_HOST", "localhost", True),
        ("REDIS_HOST", "cache", False),
        ("REDIS_URL", "redis://:secret@cache", True),
        ("REDIS_URL", "redis://cache", False),
        ("REDIS_URL", "unix:///run/redis", True),
        ("REDIS_URL", "rediss://cache?ssl_certfile=/a&ssl_keyfile=/b", True),
        ("REDIS_URL", "redis+sentinel://localhost/main", False),  # its server may be remote
    ],
)
def test_production_requires_a_password_for_a_remote_server(
    env: pytest.MonkeyPatch, name: str, value: str, *, is_safe: bool
) -> None:
    env.setenv("ENV", "production")
    env.setenv("CACHE_BACKEND_TYPE", "redis")
    env.setenv(name, value)

    assert ("REDIS_PASSWORD must be set" in settings_error()) is not is_safe

    env.setenv("CACHE_BACKEND_TYPE", "memory")
    assert "REDIS_PASSWORD" not in settings_error()
