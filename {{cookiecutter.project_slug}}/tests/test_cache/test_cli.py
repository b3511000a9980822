import pytest
import uvicorn

from tests.fixtures.commands import Run


@pytest.mark.parametrize(("workers", "warned"), [("1", False), ("2", True)])
def test_several_workers_with_memory_are_warned(
    monkeypatch: pytest.MonkeyPatch, run: Run, workers: str, *, warned: bool
) -> None:
    """Each has a cache of its own, so that a change reaches the others late."""
    monkeypatch.setattr(uvicorn, "run", lambda *_, **__: None)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    result = run("api", "--workers", workers, CACHE_BACKEND_TYPE="memory")

    assert result.status == 0
    assert ("each worker has a separate cache" in result.err) is warned
