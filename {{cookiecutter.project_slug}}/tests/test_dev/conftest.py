import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev import (
    postgres,
    # % if cookiecutter.__queue_rabbitmq
    rabbitmq,
    # % endif
    unprivileged,
)
from dev.postgres import embedded_postgres
from tests.test_dev.processes import LIMIT


@pytest.fixture(autouse=True, scope="session")
def shared_folder() -> Iterator[Path]:
    """Where root's servers keep their data in these tests, instead of the real place."""
    folder = Path(tempfile.mkdtemp(prefix="shared-", dir="/var/tmp"))
    folder.chmod(0o711)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unprivileged, "SHARED", folder)
        # No test pulls the plug, so none has to wait for the disk.
        patch.setattr(postgres, "INITIALISE", (*postgres.INITIALISE, "--no-sync"))
        # A busy machine may take its time to stop the server before.
        patch.setattr(postgres, "RELEASE_LIMIT", LIMIT)
        # % if cookiecutter.__queue_rabbitmq
        patch.setattr(rabbitmq, "RETRY_LIMIT", LIMIT)
        # % endif
        yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kept cluster, stopped, with a database named `kept`."""
    data = tmp_path_factory.mktemp("project") / ".data" / "postgres"
    with embedded_postgres(data) as server:
        server.create_database("kept")
    return data
