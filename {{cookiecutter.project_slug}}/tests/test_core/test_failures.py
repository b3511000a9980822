import pytest
import structlog
from structlog.testing import capture_logs

from src.core import failures
from src.core.failures import MAX_LENGTH, Outage, describe


def test_a_description_can_be_stored() -> None:
    """PostgreSQL rejects NUL and surrogates."""
    assert describe(ValueError("a\0b\ud800")) == r"ValueError: a\0b\ud800"
    assert len(describe(ValueError("x" * 2 * MAX_LENGTH))) == MAX_LENGTH


def test_an_outage_and_its_end_are_each_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "log", structlog.get_logger())  # not bound by an earlier test
    outage = Outage("server_unavailable", "server_recovered")
    with capture_logs() as logs:
        outage.end()
        for error in (OSError("refused"), TimeoutError()):
            outage.begin(error)
        assert outage.is_on
        outage.end()
        outage.begin(TimeoutError())

    assert [(log["event"], log.get("cause")) for log in logs] == [
        ("server_unavailable", "refused"),
        ("server_recovered", None),
        ("server_unavailable", "no response in time"),
    ]
