from pathlib import Path

import pytest

from dev import server
from dev.postgres import embedded_postgres
from tests.test_dev.processes import LIMIT, query


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take its time to stop the server before."""
    monkeypatch.setattr(server, "RELEASE_LIMIT", LIMIT)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kept cluster, stopped, with a table named `kept`; it lies where only its user may go."""
    data = tmp_path_factory.mktemp("project") / ".data" / "postgres"
    with embedded_postgres(data) as url:
        query(url, "CREATE TABLE kept ()")
    return data
