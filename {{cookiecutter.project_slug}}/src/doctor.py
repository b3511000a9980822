"""The checks of `python cli.py doctor`.

A feature adds its own: the mapping `CHECKS` in a module `doctor.py` of its package.
"""

import asyncio
import http.client
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from importlib import import_module
from pathlib import Path
from textwrap import indent

from src.core.config import Settings
from src.core.logging import configure_logging, mask_line
from src.core.ports import listen

LIMIT_SECONDS = 5
TO_DO = "Start it, or correct its settings: address, password, TLS."
CLOSED = re.compile("reset by peer|closed by server")
LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound

Check = Callable[[Settings], Awaitable[str | None]]  # returns what it found; None is no line
Result = tuple[str, str, str]  # the name, `ok`, `failed` or `skipped`, and what was found


class CheckError(Exception):
    def __init__(self, problem: object, to_do: str = TO_DO) -> None:
        text = str(problem).rstrip(".")
        tls = " It may need TLS." if CLOSED.search(text) else ""
        super().__init__(f"{text}.{tls} {to_do}")


class CheckSkippedError(Exception):
    """The message is the reason."""


async def examine(settings: Settings) -> list[Result]:
    """Run all checks at the same time, each for at most five seconds."""
    configure_logging(settings)
    by_dev = _started_by_dev(settings)
    runs = [_run(name, check, settings, by_dev) for name, check in _checks()]
    return [
        ("settings", "ok", _describe_settings(settings)),
        *filter(None, await asyncio.gather(*runs)),
    ]


def _describe_settings(settings: Settings) -> str:
    names = ", ".join(sorted(settings.model_fields_set))
    return f"ENV={settings.ENV}. Set: {names or 'none, so all have their defaults'}."


def format_result(name: str, state: str, text: str) -> str:
    text = mask_line(None, "", text)
    start = f"{name:<14}{state:<9}"
    return start + indent(text, " " * len(start)).strip()


def _checks() -> Iterator[tuple[str, Check]]:
    for path in sorted(Path(__file__).parent.glob("*/doctor.py")):
        yield from import_module(f"src.{path.parent.name}.doctor").CHECKS.items()


def _started_by_dev(settings: Settings) -> set[str]:
    """Return the checks of servers that `dev` would start: it does not run, and none are named."""
    if settings.is_deployed:
        return set()
    try:
        from dev.stack import SERVERS  # noqa: PLC0415 - not installed in production
    except ModuleNotFoundError:
        return set()
    return {server.check for server in SERVERS if server.is_missing(settings)}


async def _run(name: str, check: Check, settings: Settings, by_dev: set[str]) -> Result | None:
    try:
        text = await asyncio.wait_for(check(settings), LIMIT_SECONDS)
    except CheckSkippedError as skipped:
        return name, "skipped", str(skipped)
    except TimeoutError:
        reason = str(CheckError(f"No response within {LIMIT_SECONDS} seconds"))
    except CheckError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - it must not hide the results of the others
        reason = f"{type(error).__name__}: {error}"
    else:
        return None if text is None else (name, "ok", text)
    if name in by_dev:
        return name, "skipped", "Not running. `python cli.py dev` starts it."
    return name, "failed", reason


async def describe_port(settings: Settings, name: str, path: str, words: str = "") -> str:
    """Say whether the port of this setting is free. Raise CheckError if another program has it.

    This service responds to a GET of `path` with `words`.
    """
    return await asyncio.to_thread(_describe_port, settings, name, path, words)


def _describe_port(settings: Settings, name: str, path: str, words: str) -> str:
    host, port = settings.HOST, getattr(settings, name)
    try:
        listen(host, port).close()
    except OSError as error:
        if _responds(LOCAL.get(host, host), port, path, words):
            return f"{port}: this service is running."
        reason = f"Cannot listen on {host}:{port}: {error.strerror}.{_holder(port)}"
        raise CheckError(reason, f"Set another {name}, or stop that program.") from error
    return f"{port} is free."


def _responds(host: str, port: int, path: str, words: str) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status == http.HTTPStatus.OK and words in response.read().decode()
    except (OSError, http.client.HTTPException, UnicodeError):
        return False
    finally:
        connection.close()


def _holder(port: int) -> str:
    """Return a sentence with the process that listens on the port, if `lsof` can tell."""
    if lsof := shutil.which("lsof"):
        command = [lsof, "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"]  # p123, cname
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        if len(found) > 1:
            return f" Process {found[0][1:]} ({found[1][1:]}) has it."
    return ""
