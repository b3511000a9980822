from typing import get_args

import pytest

from src.cache.backends.factory import create_backend
from src.core import cache_type
from src.core.config import InvalidSettingsError, load_settings


@pytest.mark.usefixtures("env")
def test_default_is_the_first_choice() -> None:
    settings = load_settings()

    assert get_args(cache_type.CacheType)[0] == settings.CACHE_BACKEND_TYPE
    assert settings.CACHE_TTL_SECONDS == 300


@pytest.mark.parametrize("choice", get_args(cache_type.CacheType))
async def test_every_choice_makes_a_backend(env: pytest.MonkeyPatch, choice: str) -> None:
    env.setenv("CACHE_BACKEND_TYPE", choice)
    env.setenv("CACHE_TTL_SECONDS", "7")

    async with create_backend(load_settings()) as backend:
        assert backend.ttl == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CACHE_BACKEND_TYPE", "memcached"),
        ("CACHE_TTL_SECONDS", "0"),
        ("CACHE_TTL_SECONDS", "soon"),
        ("CACHE_MEMORY_MAX_MEGABYTES", "0"),
    ],
)
def test_bad_values_are_named(env: pytest.MonkeyPatch, name: str, value: str) -> None:
    env.setenv(name, value)

    with pytest.raises(InvalidSettingsError, match=f"  {name}: "):
        load_settings()
