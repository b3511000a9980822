from typing import Any

import pytest
from pydantic import SecretStr

from src.core import redis_url
from src.core.config import InvalidSettingsError, Settings, load_settings


@pytest.mark.parametrize(
    ("variables", "server"),
    [
        ({"REDIS_HOST": "::1", "REDIS_PORT": "1", "REDIS_DB": "0"}, "redis://[::1]:1/0"),
        (
            {"REDIS_HOST": "far", "REDIS_PORT": "1", "REDIS_DB": "2", "REDIS_PASSWORD": "p@s:w/d%"},
            "redis://:p%40s%3Aw%2Fd%25@far:1/2",
        ),
        ({"REDIS_HOST": "one", "REDIS_URL": "redis://two"}, "redis://two/0"),
    ],
)
def test_url_wins_over_parts(
    env: pytest.MonkeyPatch, variables: dict[str, str], server: str
) -> None:
    assert not load_settings().is_set("REDIS_URL", "REDIS_HOST")
    for name, value in variables.items():
        env.setenv(name, value)

    settings = load_settings()

    assert settings.redis_url.server == server
    assert settings.is_set("REDIS_URL", "REDIS_HOST")


@pytest.mark.parametrize(
    ("text", "nodes", "options"),
    [
        ("redis://h", [("h", 6379)], {"db": 0}),
        ("redis://h?db=2", [("h", 6379)], {"db": 2}),
        ("redis://[::1]:1", [("::1", 1)], {"db": 0}),
        ("redis://me:s%40c@h", [("h", 6379)], {"db": 0, "username": "me", "password": "s@c"}),
        (
            "rediss://h?ssl_ca_certs=/a.pem&ssl_check_hostname=no",
            [("h", 6379)],
            {"db": 0, "ssl": True, "ssl_ca_certs": "/a.pem", "ssl_check_hostname": False},
        ),
        (
            "redis+sentinel://me:s@a,b:1/main/2",
            [("a", 26379), ("b", 1)],
            {"db": 2, "username": "me", "password": "s"},
        ),
        ("rediss+cluster://a,b:1/0", [("a", 6379), ("b", 1)], {"db": 0, "ssl": True}),
        ("unix:///run/a%20b?db=1&password=s", [], {"path": "/run/a b", "db": 1, "password": "s"}),
    ],
)
def test_urls(text: str, nodes: list[tuple[str, int]], options: dict[str, Any]) -> None:
    url = redis_url.parse(text)

    assert list(url.nodes) == nodes
    assert {name: url.options.get(name) for name in options} == options


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "http://:hunter2@h",
        "redis://:hunter2@",
        "redis://:hunter2@h:99999",
        "redis://h:hunter2",
        "redis://:hunter2@h/-1",
        "redis://:hunter2@a,b",
        "redis://:hunter2@[h",
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
def test_errors_of_invalid_urls_do_not_show_the_url(env: pytest.MonkeyPatch, text: str) -> None:
    env.setenv("REDIS_URL", text)

    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()

    assert "  REDIS_URL: " in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_cluster_with_a_local_node_is_not_protected() -> None:
    assert not redis_url.parse("redis+cluster://localhost").is_protected


def test_secrets_are_not_shown() -> None:
    settings = Settings(
        ENV="test",
        REDIS_URL=SecretStr("redis://hunter2:hunter2@far"),
        REDIS_PASSWORD=SecretStr("hunter2"),
    )

    assert settings.redis_url.options["password"] == "hunter2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in repr(settings.redis_url)
    assert "hunter2" not in settings.model_dump_json()
