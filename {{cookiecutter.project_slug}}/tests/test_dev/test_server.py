import sys
import tempfile
from pathlib import Path

import pytest

from dev.server import ServerError, ServerKind, locked, run_folder
from dev.supervisor import supervised

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX sockets and locks"),
]

KIND = ServerKind(name="Thing", alternative="Set THING_URL.", ready="ready")


def test_missing_wheel_is_reported() -> None:
    message = r"Cannot start Thing: the wheel no-thing is not installed\. Set THING_URL\."
    with pytest.raises(ServerError, match=message):
        KIND.find_wheel("no-thing")


def test_error_of_a_server_has_its_last_log_lines(tmp_path: Path) -> None:
    message = r"Cannot start Thing: no / luck\. Set THING_URL\."
    with (
        (tmp_path / "log").open("wb") as log,
        supervised(["printf", "no\nluck.\n"], output=log) as process,
        pytest.raises(ServerError, match=message),
    ):
        KIND.wait_until_ready(process, tmp_path / "log")


def test_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = f"{tmp_path / 'file'} cannot be used: File exists"
    with pytest.raises(ServerError, match=message), locked(tmp_path / "file"):
        pass


def test_path_of_a_socket_is_short_in_a_deep_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("a folder with a long name" * 4)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with run_folder("pg-") as run:
        assert len(str(run)) < 104 - len("/socket/.s.PGSQL.5432")
        assert run.stat().st_mode & 0o777 == 0o700
