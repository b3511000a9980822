from pathlib import Path

import pytest

from dev import server
from dev.postgres import embedded_postgres
from tests.test_dev.processes import LIMIT, query


@pytest.fixture(autouse=True)
def _long_lock_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need longer to stop the previous server."""
    monkeypatch.setattr(server, "LOCK_TIMEOUT_SECONDS", LIMIT)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped cluster with a table named `stored`, in a private directory."""
    data = tmp_path_factory.mktemp("project") / ".data" / "postgres"
    with embedded_postgres(data) as url:
        query(url, "CREATE TABLE stored ()")
    return data
