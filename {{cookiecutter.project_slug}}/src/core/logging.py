"""Logging for the service and its libraries (uvicorn, SQLAlchemy, Alembic), in one format.

Each line is a JSON object; in development, lines are colored text.
"""

import logging
import os
import re
import sys
from typing import Any

import structlog
from asgi_correlation_id import correlation_id
from structlog.processors import ExceptionRenderer
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

from src.core.config import Settings
from src.core.trace import trace_id_of, traceparent

_SECRET_NAME = re.compile(
    r"passw|passphrase|secret|token|api[-_]?key|authorization|cookie|credential|dsn", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"""(://[^:/\s"']*:)[^\s"']+@""")
# Loggers that repeat other lines or say nothing useful.
_SILENCED = ("alembic.runtime.plugins", "alembic.util.messaging", "watchfiles.main")
_OWN_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "alembic", "sqlalchemy.engine")


def configure_logging(settings: Settings) -> None:
    """Send all logging through structlog. It is safe to call this again."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _add_origin,
        _mask_secrets,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                ProcessorFormatter.remove_processors_meta,
                *_renderers(settings),
                _mask_urls,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.LOG_LEVEL)
    _adopt_library_loggers()


def _renderers(settings: Settings) -> list[Processor]:
    if settings.ENV == "development":
        plain = structlog.dev.plain_traceback
        colors = "FORCE_COLOR" in os.environ or sys.stderr.isatty()  # `dev` sets it
        return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    # Local variables may contain secrets.
    tracebacks = ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
    return [tracebacks, structlog.processors.JSONRenderer()]


def _adopt_library_loggers() -> None:
    """Replace the handlers of libraries with the root handler."""
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


def _add_origin(_logger: object, _method: str, event: EventDict) -> EventDict:
    if request_id := correlation_id.get():
        event["request_id"] = request_id
    if (parent := traceparent.get()) and (trace_id := trace_id_of(parent)):
        event["trace_id"] = trace_id
    return event


def _mask_secrets(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Mask the values of fields with a name like `password`, in nested data too."""
    return {name: _masked(name, value) for name, value in event.items()}


def _masked(name: str, value: Any) -> Any:
    if _SECRET_NAME.search(name):
        return "**********"
    if isinstance(value, dict):
        return {str(inner): _masked(str(inner), each) for inner, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked("", each) for each in value]
    return value


def _mask_urls(_logger: object, _method: str, line: Any) -> Any:
    """Mask passwords in URLs anywhere in the rendered line, tracebacks included."""
    return _URL_PASSWORD.sub(r"\1**********@", line) if "://" in line else line
