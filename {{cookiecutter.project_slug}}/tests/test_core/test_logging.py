import json
import logging
import re
import warnings
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from fastapi import BackgroundTasks, FastAPI, Request
from httpx import AsyncClient
from pydantic import SecretStr
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from src.api.auth import allow_anonymous
from src.core import logging as core_logging
from src.core.config import Settings
from src.core.logging import configure_logging
from src.core.trace import request_id
from src.db.session import Database
from tests.fixtures.client import connect, served
from tests.fixtures.environment import API
from tests.fixtures.notes import NOTES

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    yield
    logging.getLogger().handlers = []
    logging.captureWarnings(capture=False)


@pytest.fixture
def production(settings: Settings) -> Settings:
    """Lines are JSON objects, as in production."""
    return settings.model_copy(update={"ENV": "production", "LOG_LEVEL": "INFO"})


def lines(captured: Captured) -> list[dict[str, Any]]:
    return [json.loads(line) for line in captured.readouterr().err.splitlines()]


def test_libraries_and_service_use_the_same_format(capsys: Captured, production: Settings) -> None:
    configure_logging(production)

    structlog.get_logger("src.x").warning("ours", lamp="green")
    logging.getLogger("uvicorn.error").warning("theirs %s", "lamp")

    ours, theirs = lines(capsys)
    assert (ours["event"], ours["lamp"], ours["logger"]) == ("ours", "green", "src.x")
    assert (theirs["event"], theirs["level"]) == ("theirs lamp", "warning")
    assert ours["timestamp"].endswith("Z")


def test_lines_have_the_request_id_and_a_traceback_without_variables(
    capsys: Captured, production: Settings
) -> None:
    configure_logging(production)

    token = request_id.set("abc")
    try:
        password = "hunter2"
        raise_for(len(password))
    except ValueError:
        structlog.get_logger("src.x").exception("failed")
    logging.getLogger("x").warning("called", extra={"request_id": "given"})
    request_id.reset(token)

    line, given = lines(capsys)
    assert given["request_id"] == "given"
    assert line["request_id"] == "abc"
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert "hunter2" not in json.dumps(line)


def raise_for(_length: int) -> None:
    raise ValueError("postgresql://me:p@hunter2@db/shop is unavailable")


def test_secrets_are_masked_at_any_depth(capsys: Captured, production: Settings) -> None:
    configure_logging(production)

    structlog.get_logger("src.x").warning(
        "called",
        password="hunter2",
        calls=[{"token": "hunter2"}],
        url="postgresql://me:hunter2@db/shop",
        headers={"Authorization": "hunter2", b"x-api-key": "hunter2", "Accept": "text/plain"},
        pairs=[(b"cookie", b"hunter2"), ("x-api-key", "hunter2")],
    )

    (line,) = lines(capsys)
    assert "hunter2" not in json.dumps(line)
    assert line["headers"]["Accept"] == "text/plain"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("a://u:hunter2@h b://u:hun@ter2@h/p", "a://u:**********@h b://u:**********@h/p"),
        ("http://h/?next=a://u:hunter2@h", "http://h/?next=a://u:**********@h"),
        ("http://h:80/p 'a://u:@h'", "http://h:80/p 'a://u:@h'"),
        ("http://h/?page=2&api_key=hunter2", "http://h/?page=2&api_key=**********"),
        ("GET /?access_token=hunter2&size=9", "GET /?access_token=**********&size=9"),
        (f"lamps_0123456789Ab_{'z' * 43}1Ad6Yc.", "lamps_0123456789Ab_**********."),
    ],
)
def test_passwords_in_urls_and_keys_are_masked(
    capsys: Captured, production: Settings, text: str, masked: str
) -> None:
    configure_logging(production)

    structlog.get_logger("src.x").warning(text)

    (line,) = lines(capsys)
    assert line["event"] == masked


def test_names_of_secrets(capsys: Captured, production: Settings) -> None:
    names = """
        password db_password dbpassword userPassword password2 password_hash token access_token
        accessToken tokens client_secret SECRET_KEY api_key X-API-Key apikey Authorization
        Set-Cookie credentials dsn
    """
    configure_logging(production)

    logging.getLogger("x").warning("called", extra=dict.fromkeys(names.split(), "hunter2"))

    (line,) = lines(capsys)
    assert {line[name] for name in names.split()} == {"**********"}


def test_similar_names_are_not_masked(capsys: Captured, production: Settings) -> None:
    given: dict[str, Any] = {"token_count": 3, "max_tokens": 4096}
    given |= {"has_password": True, "password": None}
    names = "token_type tokenizer secretary passwordless cookie_banner sort_key authorization_url"
    given |= dict.fromkeys(names.split(), "x")
    configure_logging(production)

    structlog.get_logger("src.x").warning("called", **given)

    (line,) = lines(capsys)
    assert line.items() >= given.items()


def test_extra_fields_and_arguments(capsys: Captured, production: Settings) -> None:
    """A field whose name is reserved gets an underscore."""
    configure_logging(production)
    fields = {"order": 7, "level": "gold", "logger": "x", "timestamp": "x"}

    logging.getLogger("x").warning("a %s", "b", extra={**fields, "event": "x"}, stack_info=True)
    logging.getLogger("x").warning("a %(b)s", {"b": "c"}, extra={"color_message": "x"})
    structlog.get_logger("src.x").warning("a %s", "b", **fields)

    theirs, mapping, ours = lines(capsys)
    for line in (theirs, ours):
        assert (line["event"], line["order"], line["level"]) == ("a b", 7, "warning")
        assert (line["level_"], line["logger_"], line["timestamp_"]) == ("gold", "x", "x")
    assert theirs["event_"] == "x"
    assert "test_extra_fields" in theirs["stack"].splitlines()[-2]
    assert set(mapping) == {"event", "level", "logger", "timestamp"}
    assert mapping["event"] == "a c"


def test_any_value_can_be_logged(capsys: Captured, production: Settings) -> None:
    configure_logging(production)
    given = {"id": UUID(int=1), "day": date(2026, 1, 2), "error": ValueError("x"), "raw": b"x"}

    cycle: list[object] = []
    cycle.append(cycle)

    logging.getLogger("x").warning("called", extra={"given": given, "seen": {1}, "path": Path("x")})
    structlog.get_logger("src.x").warning("called", cycle=cycle)

    line, _ = lines(capsys)
    text = {"id": str(UUID(int=1)), "day": "2026-01-02", "error": "ValueError('x')", "raw": "b'x'"}
    assert line["given"] == text
    assert (line["seen"], line["path"]) == ("{1}", "x")


def test_a_value_that_fails_does_not_fail_its_caller(
    capsys: Captured, production: Settings
) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("broken lamp")

    configure_logging(production)

    structlog.get_logger("src.x").warning("called", given=Broken())

    assert "broken lamp" in capsys.readouterr().err


class TestOtherHandlers:
    """With another handler or a filter, a line takes the longer way through the standard library."""

    @pytest.mark.parametrize("environment", ["development", "production"])
    def test_do_not_change_lines(
        self, capsys: Captured, production: Settings, environment: str
    ) -> None:
        configure_logging(production.model_copy(update={"ENV": environment}))
        log = structlog.get_logger("src.x").bind(order=7)

        def write() -> str:
            with structlog.contextvars.bound_contextvars(shop=b"x"):
                log.info("a %s", "b", token="hunter2", given={"password": "hunter2"}, level="gold")
                log.warning("called", path="/?api_key=hunter2", url="a://u:hunter2@h", raw={1})
                try:
                    raise_for(1)
                except ValueError:
                    log.exception("failed")
            log.debug("hidden")
            return re.sub(r"\d+:\d+:[\d.]+", "", capsys.readouterr().err)

        alone = write()
        logging.getLogger().addHandler(logging.NullHandler())

        assert write() == alone
        assert "hunter2" not in alone
        assert alone.count("order") == 3

    @pytest.mark.parametrize("name", ["", "src", "src.x"])
    def test_get_whole_records(self, production: Settings, name: str) -> None:
        records: list[logging.LogRecord] = []
        collector = logging.NullHandler()
        collector.handle = records.append  # type: ignore[method-assign, assignment]  # no lock
        configure_logging(production)
        logging.getLogger(name).addHandler(collector)

        try:
            raise_for(1)
        except ValueError:
            structlog.get_logger("src.x").exception("failed", token="hunter2")
        logging.getLogger(name).removeHandler(collector)

        (record,) = records
        assert isinstance(record.msg, dict)
        assert (record.msg["event"], record.msg["token"]) == ("failed", "**********")
        assert (record.name, record.pathname) == ("src.x", __file__)
        assert record.exc_info

    def test_agents_get_whole_records(
        self, capsys: Captured, production: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Sentry's SDK adds no handler. It replaces a method of the loggers."""
        records: list[logging.LogRecord] = []
        call_handlers = logging.Logger.callHandlers

        def collect(logger: logging.Logger, record: logging.LogRecord) -> None:
            records.append(record)
            call_handlers(logger, record)

        configure_logging(production)
        monkeypatch.setattr(logging.Logger, "callHandlers", collect)
        try:
            raise_for(1)
        except ValueError:
            structlog.get_logger("src.x").exception("failed")

        (record,) = records
        assert (record.name, record.levelname) == ("src.x", "ERROR")
        assert record.exc_info
        assert len(lines(capsys)) == 1

    def test_filters_apply(self, capsys: Captured, production: Settings) -> None:
        configure_logging(production)
        log, logger = structlog.get_logger("src.x"), logging.getLogger("src.x")
        (handler,) = logging.getLogger().handlers

        for each in (logger, handler):
            each.addFilter(is_wanted)
            log.warning("unwanted")
            log.warning("wanted")
            each.removeFilter(is_wanted)
        handler.setLevel(logging.ERROR)
        log.warning("low")
        logging.disable(logging.ERROR)
        log.error("disabled")
        logging.disable(logging.NOTSET)

        assert [line["event"] for line in lines(capsys)] == ["wanted", "wanted"]


def is_wanted(record: logging.LogRecord) -> bool:
    return isinstance(record.msg, dict) and record.msg["event"] == "wanted"


def test_warnings_are_logged(capsys: Captured, production: Settings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        configure_logging(production)
        warnings.warn("old lamp", stacklevel=1)

    (line,) = lines(capsys)
    assert line["logger"] == "py.warnings"
    assert "UserWarning: old lamp" in line["event"]


class TestAccessLog:
    async def test_line_has_fields(
        self, capsys: Captured, production: Settings, client: AsyncClient
    ) -> None:
        configure_logging(production)
        path = f"{NOTES}{uuid4()}"

        await client.get(f"{path}?page=2")

        (line,) = [each for each in lines(capsys) if each["logger"] == "src.access"]
        assert (line["event"], line["method"], line["path"]) == ("request_completed", "GET", path)
        assert (line["route"], line["status"]) == (NOTES + "{note_id}", 404)
        assert line["duration_ms"] > 0
        assert line["request_id"]

    @pytest.mark.parametrize("environment", ["development", "production"])
    async def test_line_is_processed_once(
        self,
        production: Settings,
        client: AsyncClient,
        monkeypatch: pytest.MonkeyPatch,
        environment: str,
    ) -> None:
        """Each request pays for it: no second formatting, and no record with the caller's line."""
        configure_logging(production.model_copy(update={"ENV": environment}))
        masked: list[str] = []
        monkeypatch.setattr(core_logging, "_is_secret_name", masked.append)
        monkeypatch.setattr(logging.getLogger("src.access"), "makeRecord", None)

        await client.get(f"{API}/health/live")

        assert [masked.count(name) for name in ("method", "path", "route", "status")] == [1] * 4

    async def test_line_is_short_in_development(
        self, capsys: Captured, client: AsyncClient
    ) -> None:
        configure_logging(Settings(ENV="development", LOG_LEVEL="INFO"))

        await client.get("/new%0Aline")

        line = capsys.readouterr().err.splitlines()[0]
        assert re.fullmatch(r"\S+ \[info     \] GET /new%0Aline 404 [\d.]+ ms *", line)


class TestPrincipal:
    async def test_is_in_each_line_of_a_request(
        self, capsys: Captured, production: Settings, fresh_app: FastAPI, database: Database
    ) -> None:
        """Also in another thread and after the response. The next request has another one."""
        log = structlog.get_logger("src.x")

        @fresh_app.get("/sync")
        def work(background: BackgroundTasks) -> None:
            log.info("endpoint")
            background.add_task(log.info, "background")

        fresh_app.get("/public")(allow_anonymous(lambda: log.info("endpoint")))
        client = connect(fresh_app, database, with_keys(production))
        configure_logging(production)

        for path, key in (("/sync", "one"), ("/public", "one"), ("/sync", "two"), ("/sync", "x")):
            await client.get(path, headers={"X-API-Key": key})

        found = [each for each in lines(capsys) if each["logger"].startswith("src.")]
        one, two = [each["principal"] for each in found if each["event"] == "background"]
        assert one != two
        assert [(each["event"], each.get("principal")) for each in found] == [
            *((event, one) for event in ("endpoint", "request_completed", "background")),
            *((event, None) for event in ("endpoint", "request_completed")),
            *((event, two) for event in ("endpoint", "request_completed", "background")),
            *((event, None) for event in ("credentials_rejected", "request_completed")),
        ]

    async def test_is_in_the_line_of_a_request_through_middleware_of_starlette(
        self, capsys: Captured, production: Settings, fresh_app: FastAPI, database: Database
    ) -> None:
        """`BaseHTTPMiddleware` runs the endpoint in another task."""

        async def dispatch(request: Request, call_next: Any) -> Any:
            return await call_next(request)

        fresh_app.user_middleware.append(Middleware(BaseHTTPMiddleware, dispatch=dispatch))
        client = connect(fresh_app, database, with_keys(production))
        configure_logging(production)

        await client.get(NOTES, headers={"X-API-Key": "one"})

        assert lines(capsys)[-1]["principal"].startswith("api-key:")

    async def test_of_one_connection_does_not_leak_into_the_next_request(
        self, capsys: Captured, production: Settings, fresh_app: FastAPI, database: Database
    ) -> None:
        async with (
            served(fresh_app, database, with_keys(production)) as host,
            AsyncClient(base_url=f"http://{host}") as client,
        ):
            configure_logging(production)
            await client.get(NOTES, headers={"X-API-Key": "one"})
            await client.get(f"{API}/health/live")

        first, second = [each for each in lines(capsys) if each["event"] == "request_completed"]
        assert first["principal"].startswith("api-key:")
        assert "principal" not in second


def with_keys(settings: Settings) -> Settings:
    return settings.model_copy(update={"API_KEYS": [SecretStr("one"), SecretStr("two")]})


def test_loggers_of_libraries_use_the_root_handler_unless_disabled(production: Settings) -> None:
    loud, silent = logging.getLogger("uvicorn"), logging.getLogger("uvicorn.access")
    loud.handlers, loud.propagate = [logging.NullHandler()], False
    silent.handlers, silent.propagate = [], False

    configure_logging(production)

    assert (loud.handlers, loud.propagate) == ([], True)
    assert (silent.handlers, silent.propagate) == ([], False)
    assert logging.getLogger("src.access").disabled
    silent.propagate = True
    configure_logging(production)
    assert not logging.getLogger("src.access").disabled
    assert not silent.isEnabledFor(logging.ERROR)  # the service writes these lines


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
