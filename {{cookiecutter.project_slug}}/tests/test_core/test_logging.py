import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from asgi_correlation_id import correlation_id

from src.core.config import Settings
from src.core.logging import configure_logging

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _remove_handlers() -> Iterator[None]:
    yield
    logging.getLogger().handlers = []


def lines(captured: Captured) -> list[dict[str, Any]]:
    return [json.loads(line) for line in captured.readouterr().err.splitlines()]


def test_libraries_and_service_use_the_same_format(capsys: Captured, settings: Settings) -> None:
    configure_logging(settings)

    structlog.get_logger("src.x").warning("ours", lamp="green")
    logging.getLogger("uvicorn.error").warning("theirs %s", "lamp")

    ours, theirs = lines(capsys)
    assert (ours["event"], ours["lamp"], ours["logger"]) == ("ours", "green", "src.x")
    assert (theirs["event"], theirs["level"]) == ("theirs lamp", "warning")
    assert ours["timestamp"].endswith("Z")


def test_lines_have_the_request_id_and_a_traceback_without_variables(
    capsys: Captured, settings: Settings
) -> None:
    configure_logging(settings)

    token = correlation_id.set("abc")
    try:
        password = "hunter2"
        raise_for(len(password))
    except ValueError:
        structlog.get_logger("src.x").exception("failed")
    correlation_id.reset(token)

    (line,) = lines(capsys)
    assert line["request_id"] == "abc"
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert "hunter2" not in json.dumps(line)


def raise_for(_length: int) -> None:
    raise ValueError("postgresql://me:p@hunter2@db/shop is unavailable")


def test_secrets_are_masked_at_any_depth(capsys: Captured, settings: Settings) -> None:
    configure_logging(settings)

    structlog.get_logger("src.x").warning(
        "called",
        password="hunter2",
        calls=[{"token": "hunter2"}],
        url="postgresql://me:hunter2@db/shop",
        headers={"Authorization": "hunter2", "x-api-key": "hunter2", "Accept": "text/plain"},
    )

    (line,) = lines(capsys)
    assert "hunter2" not in json.dumps(line)
    assert line["headers"]["Accept"] == "text/plain"


def test_loggers_of_libraries_use_the_root_handler_unless_disabled(settings: Settings) -> None:
    loud, silent = logging.getLogger("uvicorn"), logging.getLogger("uvicorn.access")
    loud.handlers, loud.propagate = [logging.NullHandler()], False
    silent.handlers, silent.propagate = [], False

    configure_logging(settings)

    assert (loud.handlers, loud.propagate) == ([], True)
    assert (silent.handlers, silent.propagate) == ([], False)
    silent.propagate = True


@pytest.mark.parametrize("in_color", [False, True])
def test_lines_are_text_in_development(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, *, in_color: bool
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if in_color:
        monkeypatch.setenv("FORCE_COLOR", "1")
    configure_logging(Settings(ENV="development", LOG_LEVEL="INFO"))

    structlog.get_logger("src.x").info("started", port=8000)

    line = capsys.readouterr().err
    assert "started" in line
    assert ("\x1b[" in line, "port=8000" in line) == (in_color, not in_color)
