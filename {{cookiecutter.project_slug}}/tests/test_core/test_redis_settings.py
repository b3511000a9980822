from typing import Any

import pytest
from pydantic import SecretStr

from src.core import redis_url
from src.core.config import InvalidSettingsError, Settings, load_settings
from src.core.redis_url import RedisURL


@pytest.mark.usefixtures("env")
def test_defaults_are_for_development() -> None:
    settings = load_settings()

    assert settings.names_redis is False
    assert settings.redis_url == RedisURL(nodes=(("localhost", 6379),))


def test_parts_may_hold_any_character(env: pytest.MonkeyPatch) -> None:
    env.setenv("REDIS_HOST", "far")
    env.setenv("REDIS_PORT", "1")
    env.setenv("REDIS_DB", "2")
    env.setenv("REDIS_PASSWORD", "p@ss:w/rd%20")

    settings = load_settings()

    assert settings.names_redis
    assert settings.redis_url == RedisURL(nodes=(("far", 1),), db=2, password="p@ss:w/rd%20")


def test_url_wins_over_parts(env: pytest.MonkeyPatch) -> None:
    env.setenv("REDIS_HOST", "one")
    env.setenv("REDIS_URL", "redis://two")

    assert load_settings().redis_url.nodes == (("two", 6379),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://h", {"nodes": (("h", 6379),)}),
        ("redis://h:1/2", {"nodes": (("h", 1),), "db": 2}),
        ("redis://h?db=2", {"nodes": (("h", 6379),), "db": 2}),
        ("redis://[::1]:1", {"nodes": (("::1", 1),)}),
        ("redis://:s%40c@h", {"nodes": (("h", 6379),), "password": "s@c"}),
        ("redis://me:s@h", {"nodes": (("h", 6379),), "username": "me", "password": "s"}),
        ("rediss://h", {"nodes": (("h", 6379),), "tls": True}),
        (
            "rediss://h?ssl_ca_certs=/a.pem&ssl_check_hostname=no",
            {
                "nodes": (("h", 6379),),
                "tls": True,
                "tls_options": {"ssl_ca_certs": "/a.pem", "ssl_check_hostname": False},
            },
        ),
        ("unix:///run/a%20b", {"path": "/run/a b"}),
        ("unix:///run/a?db=1&password=s", {"path": "/run/a", "db": 1, "password": "s"}),
        ("unix://me:s@/run/a", {"path": "/run/a", "username": "me", "password": "s"}),
        (
            "redis+sentinel://me:s@a,b:1/main/2",
            {
                "kind": "sentinel",
                "nodes": (("a", 26379), ("b", 1)),
                "service": "main",
                "db": 2,
                "username": "me",
                "password": "s",
            },
        ),
        (
            "rediss+cluster://a,b:1/0",
            {"kind": "cluster", "nodes": (("a", 6379), ("b", 1)), "tls": True},
        ),
    ],
)
def test_urls(text: str, expected: dict[str, Any]) -> None:
    assert redis_url.parse(text) == RedisURL(**expected)


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "http://:hunter2@h",
        "redis://:hunter2@",
        "redis://:hunter2@h:99999",
        "redis://:hunter2@h:port",
        "redis://:hunter2@h/one",
        "redis://:hunter2@h/-1",
        "redis://:hunter2@a,b",
        "redis://:hunter2@[h",
        "redis://:hunter2@h?ssl_ca_certs=x",
        "redis://:hunter2@h?decode_responses=1",
        "redis://:hunter2@h?hunter2",
        "rediss://:hunter2@h?ssl_cert_reqs=hunter2",
        "unix://:hunter2@",
        "unix:///run/a?password=hunter2&db=x",
        "redis+sentinel://:hunter2@h",
        "redis+sentinel://:hunter2@h/main/x",
        "redis+cluster://:hunter2@h/1",
        "redis+unix://:hunter2@h",
    ],
)
def test_bad_urls_are_named_but_not_shown(env: pytest.MonkeyPatch, text: str) -> None:
    env.setenv("REDIS_URL", text)

    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()

    assert "  REDIS_URL: " in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "is_protected"),
    [
        ("redis://localhost", True),
        ("unix:///run/redis", True),
        ("redis://:secret@far", True),
        ("redis://far", False),
        ("rediss://far?ssl_certfile=/a&ssl_keyfile=/b", True),
        ("redis+cluster://localhost", False),
        ("redis+sentinel://localhost/main", False),
    ],
)
def test_a_server_on_the_network_is_protected_by_a_secret(text: str, *, is_protected: bool) -> None:
    """Sentinels and nodes of a Cluster tell where the others are, which may be elsewhere."""
    assert redis_url.parse(text).is_protected is is_protected


def test_a_malformed_url_is_no_missing_password(env: pytest.MonkeyPatch) -> None:
    env.setenv("ENV", "production")
    env.setenv("REDIS_URL", "mysql://:secret@far")

    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()

    assert "REDIS_PASSWORD" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    settings = Settings(
        ENV="test",
        REDIS_URL=SecretStr("redis://hunter2:hunter2@far"),
        REDIS_PASSWORD=SecretStr("hunter2"),
    )

    assert settings.redis_url.password == "hunter2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in repr(settings.redis_url)
    assert "hunter2" not in settings.model_dump_json()
