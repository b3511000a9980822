import sys

import pytest
import uvicorn

import cli
from src.core.config import get_settings


@pytest.mark.parametrize(("workers", "warned"), [("1", False), ("2", True)])
def test_several_workers_with_memory_are_warned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workers: str, warned: bool
) -> None:
    """Each has a cache of its own, so that a change reaches the others late."""
    monkeypatch.setenv("CACHE_BACKEND_TYPE", "memory")
    monkeypatch.setattr(sys, "argv", ["cli.py", "api", "--workers", workers])
    monkeypatch.setattr(uvicorn, "run", lambda *_, **__: None)
    monkeypatch.setattr(cli, "configure_logging", lambda _: None)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    get_settings.cache_clear()
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        get_settings.cache_clear()

    assert not ended.value.code
    assert ("each worker has a separate cache" in capsys.readouterr().err) is warned
