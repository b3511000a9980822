from typing import get_args

import pytest
import uvicorn

from src.cache.backends.factory import create_backend
from src.core import cache_type
from src.core.config import InvalidSettingsError, load_settings
from tests.fixtures.commands import Run


@pytest.mark.parametrize("choice", get_args(cache_type.CacheType))
async def test_every_choice_creates_a_backend(env: pytest.MonkeyPatch, choice: str) -> None:
    env.setenv("CACHE_BACKEND_TYPE", choice)
    env.setenv("CACHE_TTL_SECONDS", "7")

    async with create_backend(load_settings()) as backend:
        assert backend.ttl == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CACHE_BACKEND_TYPE", "memcached"),
        ("CACHE_TTL_SECONDS", "0"),
        ("CACHE_MEMORY_MAX_MEGABYTES", "0"),
        # % if cookiecutter.cache_backend != "memory"
        *(("CACHE_NAMESPACE", each) for each in ("a:b", "a*", "{a}", "a/b", "..")),
        # % endif
    ],
)
def test_error_names_the_invalid_setting(env: pytest.MonkeyPatch, name: str, value: str) -> None:
    env.setenv(name, value)

    with pytest.raises(InvalidSettingsError, match=f"  {name}: "):
        load_settings()


@pytest.mark.parametrize(("workers", "warned"), [("1", False), ("2", True)])
def test_several_workers_with_memory_print_a_warning(
    monkeypatch: pytest.MonkeyPatch, run: Run, workers: str, *, warned: bool
) -> None:
    """Each worker has a separate cache: an invalidation in one does not reach the others."""
    monkeypatch.setattr(uvicorn, "run", lambda *_, **__: None)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    result = run("api", "--workers", workers, CACHE_BACKEND_TYPE="memory")

    assert result.status == 0
    assert ("each worker has a separate cache" in result.err) is warned
