"""Logging for the service and its libraries (uvicorn, SQLAlchemy, Alembic), in one format.

Each line is a JSON object; in development and tests, lines are text.
"""

import errno
import json
import logging
import os
import re
import stat
import sys
from contextlib import suppress
from functools import lru_cache
from io import FileIO, TextIOWrapper
from time import gmtime, localtime, strftime, time, time_ns
from types import FunctionType
from typing import Any, TextIO
from urllib.parse import quote

import structlog
from structlog.exceptions import DropEvent
from structlog.processors import NAME_TO_LEVEL, ExceptionRenderer
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

from src.core.config import Settings
from src.core.trace import principal_id, request_id, trace_id_of, traceparent

if sys.platform == "linux":
    import fcntl

ACCESS_LOGGER = "src.access"  # one line for each request, see `src/api/metrics.py`

# A name ends with a secret: `db_password`, `accessToken` and `password_hash`, not `token_count`.
_SECRET_NAME = re.compile(
    r"""(?: passw(?:or)?ds? | passphrases? | secrets? | tokens? | (?:^|_)(?:dsn|pwd)
        | (?:api|access|private|secret|signing|encryption)_?keys?
        | authorization | cookies? | credentials? )
    (?: _(?:code|confirm|confirmation|hash|hashed|header|json|key|new|old|plain|raw|repeat
        |text|value|\d++) )* \d*$
    """,
    re.VERBOSE,
)
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")
_MAX_DEPTH = 8
_MAX_NAME = 64  # only the end of a name matters, and clients may choose names
_SCALARS = {str, int, float, type(None)}
_PIPE_BYTES = 1024 * 1024  # at 300 bytes a line, more than a second of a busy process
# Everything up to the next space is one match, so that no character is read twice.
_URL_PASSWORD = re.compile(r"""(://[^:/\s"']*:)([^\s"']++)""")
# The public ID of an API key, and the secret that follows it: see `src/auth/api_keys.py`.
_API_KEY = re.compile(r"(_[0-9A-Za-z]{12}_)[0-9A-Za-z]{49}")
_URL_PARAMETER = re.compile(r"""([?&][^=&?\s"']++=)([^&\s"']++)""")
# Loggers that repeat other lines or say nothing useful.
_SILENCED = (
    "alembic.runtime.plugins",
    "alembic.util.messaging",
    "uvicorn.access",
    "watchfiles.main",
)
_OWN_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "alembic", "sqlalchemy.engine")
# What the standard library and uvicorn add to each record.
_NO_EXTRA = {*logging.makeLogRecord({}).__dict__, "asctime", "color_message", "message"}


def configure_logging(settings: Settings) -> None:
    """Send all logging through structlog. It is safe to call this again."""
    is_text = settings.ENV in {"development", "test"}
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _rename_reserved,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        _add_time if is_text else _add_timestamp,
        structlog.processors.StackInfoRenderer(additional_ignores=["logging", __name__]),
        _add_origin,
        _mask_secrets,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=_BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = _Handler(_nonblocking_pipe())
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=[_add_extra, *shared],
            processors=[_remove_record, *_renderers(is_text=is_text), mask_line],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.LOG_LEVEL)
    _adopt_library_loggers()


class _Handler(logging.StreamHandler[TextIO]):
    """Writes the lines of this service and its libraries."""


class _Line(logging.LogRecord):
    """What `_Handler` needs of a record. A whole one would cost as much as the rest of a line."""

    def __init__(self, event: EventDict) -> None:
        self.msg, self.args = event, ()


class _BoundLogger(structlog.stdlib.BoundLogger):
    """Passes lines to `_Handler` directly, unless others need whole records."""

    def _proxy_to_logger(
        self, method_name: str, event: str | None = None, *event_args: Any, **event_kw: Any
    ) -> None:
        if event_args:
            event_kw["positional_args"] = event_args
        with suppress(DropEvent):
            args, kwargs = self._process_event(method_name, event, event_kw)
            handler = _only_handler(self._logger)
            if handler is None:
                method = getattr(self._logger, method_name)
                method(*args, **kwargs, stacklevel=3)  # the caller of `info()` and so on
            elif self._logger.isEnabledFor(NAME_TO_LEVEL[method_name]):
                handler.handle(_Line(*args))


def _only_handler(logger: logging.Logger) -> _Handler | None:
    call: Any = logging.Logger.callHandlers
    if type(call) is not FunctionType or call.__globals__ is not vars(logging):
        return None  # Sentry and other agents replace this method to get records
    while logger.parent and logger.propagate and not (logger.handlers or logger.filters):
        logger = logger.parent
    match logger.handlers:
        case [_Handler() as handler] if not (logger.filters or handler.filters or handler.level):
            return handler
    return None


class _Formatter(ProcessorFormatter):
    def format(self, record: logging.LogRecord) -> str:
        if not isinstance(record, _Line):
            return super().format(record)
        line: Any = record.msg
        for process in self.processors:
            line = process(None, "", line)
        return str(line)


class _Pipe(FileIO):
    def write(self, data: Any, /) -> int:
        """Lose the line if the reader is gone: a task that prints must not fail."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _nonblocking_pipe() -> TextIO | None:
    """Return a stream that loses lines while no one reads them, if standard error is a pipe.

    Otherwise, the process would stop at a full pipe. The pipe is opened again, because the mode of
    standard error is shared with other processes. Only Linux can do this.
    """
    if sys.platform != "linux" or sys.stderr is not sys.__stderr__:
        return None
    try:
        if not stat.S_ISFIFO(os.fstat(2).st_mode):
            return None
        descriptor = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:  # standard error is closed, has no reader, or belongs to another user
        if error.errno != errno.ENXIO:
            return None
        descriptor = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError):  # the system limits the memory of pipes
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    pipe = _Pipe(descriptor, "w", closefd=False)  # open until the process ends
    return TextIOWrapper(pipe, "utf-8", "backslashreplace", write_through=True)


def _renderers(*, is_text: bool) -> list[Processor]:
    if is_text:
        plain = structlog.dev.plain_traceback
        colors = "FORCE_COLOR" in os.environ or sys.stderr.isatty()  # `dev` sets it
        console = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)
        return [_shorten_access, console]
    # Local variables may contain secrets.
    tracebacks = ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
    encoder = json.JSONEncoder(default=_to_text)
    return [tracebacks, lambda _logger, _method, event: encoder.encode(event)]


def _to_text(value: object) -> str:
    return repr(value) if isinstance(value, BaseException) else str(value)


def _shorten_access(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Make the line of a request fit into one line of a terminal."""
    if event["logger"] != ACCESS_LOGGER:
        return event
    path = quote(event["path"])
    line = f"{event['method']} {path} {event['status']} {event['duration_ms']} ms"
    return {"event": line, "level": event["level"], "timestamp": event["timestamp"]}


def _adopt_library_loggers() -> None:
    """Replace the handlers of libraries with the root handler."""
    uvicorn = logging.getLogger("uvicorn.access")
    logging.getLogger(ACCESS_LOGGER).disabled = not (uvicorn.handlers or uvicorn.propagate)
    logging.captureWarnings(capture=True)
    for name in _OWN_HANDLERS:
        logger = logging.getLogger(name)
        # No handlers means that logging was disabled, as `uvicorn --no-access-log` does.
        if logger.handlers:
            logger.handlers = []
            logger.propagate = True
    for name in _SILENCED:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("alembic.runtime.migration").addFilter(
        lambda record: not str(record.msg).startswith(("Context impl", "Will assume"))
    )


def _remove_record(_logger: object, _method: str, event: EventDict) -> EventDict:
    event.pop("_record", None)
    event.pop("_from_structlog", None)
    return event


def _add_timestamp(_logger: object, _method: str, event: EventDict) -> EventDict:
    second, nanoseconds = divmod(time_ns(), 1_000_000_000)
    event["timestamp"] = f"{_utc(second)}.{nanoseconds // 1000:06}Z"
    return event


def _add_time(_logger: object, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = _time_of_day(int(time()))
    return event


@lru_cache(maxsize=1)  # once a second
def _utc(second: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))


@lru_cache(maxsize=1)
def _time_of_day(second: int) -> str:
    return strftime("%H:%M:%S", localtime(second))


def _rename_reserved(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Add an underscore to fields with a name that each line has."""
    for name in ("level", "logger", "timestamp"):
        if name in event:
            event[f"{name}_"] = event.pop(name)
    return event


def _add_extra(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Add the fields of `logging.info(..., extra={...})`."""
    for name, value in event["_record"].__dict__.items():
        if name not in _NO_EXTRA:
            event["event_" if name == "event" else name] = value
    return event


def _add_origin(_logger: object, _method: str, event: EventDict) -> EventDict:
    if known := request_id.get():
        event.setdefault("request_id", known)
    if (parent := traceparent.get()) and (trace_id := trace_id_of(parent)):
        event.setdefault("trace_id", trace_id)
    if principal := principal_id.get():
        event.setdefault("principal", principal)
    return event


def _mask_secrets(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Mask the values of fields with a name like `password`, in nested data too."""
    return {
        name: value
        if type(value) in _SCALARS and not _is_secret_name(name[-_MAX_NAME:])
        else _masked(name, value)
        for name, value in event.items()
    }


def _masked(name: str, value: Any, depth: int = 0) -> Any:
    if _is_secret(name, value):
        return "**********"
    if isinstance(value, dict | list | tuple) and depth == _MAX_DEPTH:
        return "…"  # it may contain itself
    match value:
        case dict():
            return {_text(key): _masked(_text(key), each, depth + 1) for key, each in value.items()}
        case [str() | bytes() as key, each]:  # a pair, such as a header
            return [key, _masked(_text(key), each, depth + 1)]
        case list() | tuple():
            return [_masked("", each, depth + 1) for each in value]
    return value


def _text(name: object) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else str(name)


def _is_secret(name: str, value: Any) -> bool:
    if value is None or isinstance(value, bool) or not _is_secret_name(name[-_MAX_NAME:]):
        return False
    return not (name[-1:] in "sS" and isinstance(value, int))  # a number of tokens


@lru_cache(maxsize=1024)  # the names of fields are few
def _is_secret_name(name: str) -> bool:
    return bool(_SECRET_NAME.search(_WORD_STARTS.sub("_", name).lower()))


def mask_line(_logger: object, _method: str, line: Any) -> Any:
    """Mask API keys, and secrets in URLs, anywhere in the rendered line, tracebacks included."""
    if _API_KEY.search(line):
        line = _API_KEY.sub(r"\1**********", line)
    if "://" in line:
        line = _URL_PASSWORD.sub(_mask_password, line)
    return _URL_PARAMETER.sub(_mask_parameter, line) if "=" in line else line


def _mask_password(url: re.Match[str]) -> str:
    password, _, rest = url[2].rpartition("@")
    return f"{url[1]}**********@{rest}" if password else url[0]


def _mask_parameter(parameter: re.Match[str]) -> str:
    is_secret = _is_secret(parameter[1].strip("?&="), parameter[2])
    return f"{parameter[1]}**********" if is_secret else parameter[0]
