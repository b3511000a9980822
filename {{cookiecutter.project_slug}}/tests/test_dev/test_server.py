"""What the embedded servers share."""

import sys
import tempfile
from pathlib import Path

import pytest

from dev.server import Kind, ServerError, locked, run_folder
from dev.supervisor import supervised

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sockets and locks are POSIX's")

KIND = Kind(name="Thing", instead="THING_URL to your own", ready="ready")


def test_missing_wheel_is_explained() -> None:
    message = r"Thing cannot be started here \(the wheel no-thing is not installed\); set THING_URL"
    with pytest.raises(ServerError, match=message):
        KIND.find_wheel("no-thing")


def test_server_that_ends_is_explained_by_its_last_words(tmp_path: Path) -> None:
    message = r"Thing cannot be started here \(no / luck\); set THING_URL to your own\."
    with (
        (tmp_path / "log").open("wb") as log,
        supervised(["printf", "no\nluck.\n"], output=log) as process,
        pytest.raises(ServerError, match=message),
    ):
        KIND.wait_until_ready(process, tmp_path / "log")


def test_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = f"{tmp_path / 'file'} cannot be used: File exists"
    with pytest.raises(ServerError, match=message), locked(tmp_path / "file"):
        pass


def test_path_of_a_socket_is_short_whatever_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("a folder with a long name" * 4)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with run_folder("pg-") as run:
        assert len(str(run)) < 104 - len("/socket/.s.PGSQL.5432")
        assert run.stat().st_mode & 0o777 == 0o700
