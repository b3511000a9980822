"""`make bench`: measures endpoints under load, alone or in turns with an earlier revision.

It starts the servers of `make dev` with temporary data, and one process of the API with the logs and
the authentication of production. It does not read `.env`.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from math import nan
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Literal
from urllib.parse import urljoin, urlsplit

import typer
from typer import Option

from dev.load import Load, send, stop_at_sigterm
from dev.server import ServerError, ServerKind, free_port
from dev.stack import start_servers
from dev.supervisor import supervised
from src.core.config import ROOT, load_settings

# Of a comparison. The true median is between the 6th and the 15th ratio, with a probability of 96 %.
ROUNDS, BOUND = 20, 5
WARM_UP_SECONDS = 1
SETTINGS = {"ENV": "test", "LOG_LEVEL": "INFO", "DISABLED_PAGES": "", "SHUTDOWN_DELAY_SECONDS": "0"}
API = ServerKind("the API", "Does `make dev` work?", ready="Uvicorn running on")
# ENV=production in the environment would require settings that only a deployment has.
SERVE = """
import sys, uvicorn
from main import create_application
from src.core.config import get_settings
app = create_application(get_settings().model_copy(update={"ENV": "production"}))
uvicorn.run(app, port=int(sys.argv[1]), lifespan="on", log_config=None)
"""
COLUMNS = "  requests/s   p50 ms   p95 ms   p99 ms  errors"
COMPARED = "  requests/s     before  ratio   from     to   p99 ms   before  errors"

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


def main(
    url: Annotated[str, Option(envvar="URL", help="Paths, or URLs of a running service.")] = "",
    method: Annotated[Method, Option(envvar="METHOD")] = "GET",
    body: Annotated[str, Option(envvar="BODY", help="JSON; each {uuid} is a new one.")] = "",
    key: Annotated[str, Option(envvar="KEY", help="API key of a running service.")] = "",
    clients: Annotated[int, Option(envvar="CLIENTS", min=1, help="Concurrent requests.")] = 32,
    seconds: Annotated[int, Option(envvar="SECONDS", min=1, help="For each endpoint.")] = 10,
    base: Annotated[str, Option(envvar="BASE", help="Git revision to compare with.")] = "",
) -> None:
    """Measure endpoints: by default, each GET endpoint that requires no parameter."""
    stop_at_sigterm()
    urls = url.split()
    _check_urls(urls, method, base)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        addresses = [""]
        if not urls or not all(map(_is_complete, urls)):
            key = key or secrets.token_hex()
            addresses = start_services(base, key, folder, stack)
            urls = urls or find_paths(addresses[0])
        repeat = partial(send, method=method, body=body, key=key, clients=clients)
        width = max(map(len, urls), default=0)
        typer.echo(f"{clients} clients, {seconds} seconds for each endpoint\n")
        typer.echo(" " * width + (COMPARED if base else COLUMNS))
        for each in urls:
            for log in folder.glob("*/api.log"):
                os.truncate(log, 0)  # it has a line for each request
            typer.echo(f"{each:{width}}", nl=False)  # shows what is measured now
            typer.echo(measure(repeat, [urljoin(address, each) for address in addresses], seconds))
        if base:
            typer.echo(f"ratio: requests/s now, divided by those of {base}")


def _is_complete(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _check_urls(urls: list[str], method: Method, base: str) -> None:
    if method != "GET" and not urls:
        raise ServerError(f"METHOD={method} needs a URL, such as URL=/api/v1/notes/.")
    for url in urls:
        if not _is_complete(url) and not url.startswith("/"):
            raise ServerError(f"URL has {url}, which is neither a path nor starts with http://.")
        if _is_complete(url) and base:
            raise ServerError(f"BASE compares this project, but URL is {url}. Use a path.")


def start_services(base: str, key: str, folder: Path, stack: ExitStack) -> list[str]:
    """Start this project, and its revision `base` if there is one; return their addresses."""
    os.environ |= SETTINGS | {"API_KEYS": key}
    os.environ.setdefault("ENV_FILE", "")
    projects = [ROOT, check_out(base, folder)] if base else [ROOT]
    return [
        stack.enter_context(serving(project, folder / f"server-{number}"))
        for number, project in enumerate(projects)
    ]


def check_out(revision: str, folder: Path) -> Path:
    """Write the files of a revision of this project into the folder."""
    archive = folder / "base.zip"
    git = ["git", "archive", f"--output={archive}", revision]
    done = subprocess.run(git, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise ServerError(f"BASE={revision}: {done.stderr.strip().removeprefix('fatal: ')}")
    shutil.unpack_archive(archive, folder / "base")
    return folder / "base"


@contextmanager
def serving(project: Path, data: Path) -> Iterator[str]:
    """Run the API of a project and its servers; yield its address."""
    data.mkdir()
    with ExitStack() as stack:
        started = start_servers(load_settings(), data, stack)
        log = data / "api.log"
        output = stack.enter_context(log.open("ab"))

        def run(*arguments: object) -> subprocess.Popen[bytes]:
            command, environment = [sys.executable, *arguments], {**os.environ, **started}
            process = supervised(command, cwd=project, env=environment, output=output)
            return stack.enter_context(process)

        if "DATABASE_URL" in started and run("cli.py", "db", "migrate").wait() != 0:
            raise ServerError(f"The migrations fail: {API.failure_reason(log.read_text())}")
        typer.echo("Starting the API ...")
        port = free_port()
        API.wait_until_ready(run("-c", SERVE, port), log)
        yield f"http://127.0.0.1:{port}"


def find_paths(address: str) -> list[str]:
    """Return the paths of GET endpoints that require no parameter, from the OpenAPI document."""
    connection = HTTPConnection(urlsplit(address).netloc)
    connection.request("GET", f"{load_settings().API_PREFIX}/openapi.json")
    response = connection.getresponse()
    if response.status != HTTPStatus.OK:
        raise ServerError("Name the endpoints to measure, URL=/…: there is no OpenAPI document.")
    paths = json.load(response)["paths"]
    return [
        path
        for path, methods in paths.items()
        if "get" in methods
        and not any(each.get("required") for each in methods["get"].get("parameters", ()))
    ]


def measure(repeat: partial[Load], urls: list[str], seconds: float) -> str:
    """Return the row of one URL, or of a second one in turns with the first."""
    for url, when in zip(urls, ("", " before"), strict=False):
        warm_up = repeat(url, seconds=WARM_UP_SECONDS)
        if set(warm_up.results) == {"no connection"}:
            typer.echo()
            raise ServerError(f"Nothing accepts connections at {url}.")
        if not any(map(_is_success, warm_up.results)):
            return f"  no success{when}: {_errors(warm_up)}"
    if len(urls) == 1:
        load = repeat(urls[0], seconds=seconds)
        figures = "".join(f"{load.percentile(percent):9,.1f}" for percent in (50, 95, 99))
        return f"{load.rate:12,.0f}{figures}  {_errors(load)}"
    rounds = [[repeat(url, seconds=seconds / ROUNDS) for url in urls] for _ in range(ROUNDS)]
    ratios = sorted(now.rate / (before.rate or nan) for now, before in rounds)
    now, before = map(Load.total, zip(*rounds, strict=True))
    return (
        f"{now.rate:12,.0f}{before.rate:11,.0f}"
        f"{median(ratios):7.2f}{ratios[BOUND]:7.2f}{ratios[-BOUND - 1]:7.2f}"
        f"{now.percentile(99):9,.1f}{before.percentile(99):9,.1f}"
        f"  {' / '.join(dict.fromkeys((_errors(now), _errors(before))))}"
    )


def _is_success(result: int | str) -> bool:
    return str(result).startswith("2")


def _errors(load: Load) -> str:
    counts = sorted(load.results.items(), key=str)
    return ", ".join(f"{each}: {n:,}" for each, n in counts if not _is_success(each)) or "none"


if __name__ == "__main__":
    try:
        typer.run(main)
    except ServerError as error:
        sys.exit(f"Error: {error}")
