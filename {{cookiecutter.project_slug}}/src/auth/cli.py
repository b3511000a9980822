"""The command group `python cli.py keys`."""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

import typer
from asyncpg import UndefinedTableError
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.config import get_settings
from src.db import open_database
from src.db.models.api_key import ApiKey
from src.domain.errors import DomainError
from src.domain.principal import ROLES, Role, Scope
from src.services.api_key import ApiKeyService, IssuedKey

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DURATION = re.compile(r"([0-9]{1,5})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SCOPES = ", ".join(Scope) or "none"  # a new service may have none
_COLUMNS = ("NAME", "ID", "STATE", "CREATED", "EXPIRES", "LAST USE", "SCOPES")

app = typer.Typer(help="Manage API keys.", no_args_is_help=True)


def _parse_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise typer.BadParameter("use 1 to 64 letters, digits, dots, hyphens or underscores")
    return text


def _parse_scope(text: str) -> Scope:
    for scope in Scope:
        if scope == text:
            return scope
    raise typer.BadParameter(f"there is no scope {text!r}; the scopes are: {_SCOPES}")


def _parse_duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if not found or not int(found[1]):
        raise typer.BadParameter(f"{text!r} is not a duration such as 30m, 12h, 90d or 4w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


Name = Annotated[
    str, typer.Argument(parser=_parse_name, metavar="NAME", help="Name or ID of the key.")
]
Expires = Annotated[
    timedelta | None,
    typer.Option(
        "--expires",
        parser=_parse_duration,
        metavar="DURATION",
        help="Time until the key expires, such as 12h or 90d. Default: never; in a rotation, as before.",
    ),
]


@app.command()
def create(
    name: Annotated[
        str,
        typer.Argument(parser=_parse_name, metavar="NAME", help="Name of the program that calls."),
    ],
    scopes: Annotated[
        list[Scope] | None,
        typer.Option(
            "--scope", parser=_parse_scope, metavar="SCOPE", help=f"Scopes to grant: {_SCOPES}."
        ),
    ] = None,
    role: Annotated[Role | None, typer.Option(help="Add the scopes that the role has now.")] = None,
    expires: Expires = None,
) -> None:
    """Create a key, and print it. It is stored as a hash only, so this is the one time to see it.

    The key is the only line on standard output.
    """
    granted = {*(scopes or ()), *(ROLES[role] if role else ())}
    if not granted and len(Scope):
        raise typer.BadParameter("pass --scope or --role: a key without scopes can do nothing")
    prefix = get_settings().api_key_prefix
    issued = in_transaction(
        lambda db: ApiKeyService.create(db, prefix, name, granted, lifetime=expires)
    )
    _print_key(issued, "Created")


@app.command(name="list")
def list_keys() -> None:
    """Show all keys, also expired and revoked ones, without their secrets."""
    for line in _format(in_transaction(ApiKeyService.list), datetime.now(UTC)):
        typer.echo(line)


@app.command()
def revoke(name: Name) -> None:
    """Revoke a key, for good. All processes refuse it when this command ends."""
    key = in_transaction(lambda db: ApiKeyService.revoke(db, name))
    typer.echo(f"Revoked: {key.name} ({key.id}).")


@app.command()
def rotate(
    name: Name,
    grace: Annotated[
        timedelta | None,
        typer.Option(
            parser=_parse_duration,
            metavar="DURATION",
            help="Time for which the old secret remains valid, such as 1h. Default: none.",
        ),
    ] = None,
    expires: Expires = None,
) -> None:
    """Replace the secret of a key, and print the new key, the only line on standard output.

    The key keeps its ID and scopes, and its expiry unless you pass a new one.
    """
    prefix = get_settings().api_key_prefix
    issued = in_transaction(
        lambda db: ApiKeyService.rotate(db, prefix, name, grace=grace, lifetime=expires)
    )
    _print_key(issued, "Rotated")


def _print_key(issued: IssuedKey, done: str) -> None:
    key = issued.row
    note = f"{done}: {key.name} ({key.id}). Store the key now: it is not shown again."
    typer.echo(note, err=True)
    typer.echo(issued.text)


def in_transaction(work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """Run the work in a transaction. Exits with one sentence if it is not possible."""

    async def run() -> T:
        async with (
            open_database(get_settings().database_url, pool_size=1) as database,
            database.transaction() as db,
        ):
            return await work(db)

    try:
        return asyncio.run(run())
    except DomainError as error:
        sys.exit(f"Error: {error}")
    except ProgrammingError as error:
        if error.orig and isinstance(error.orig.__cause__, UndefinedTableError):
            sys.exit("Error: The database lacks a table. Run `python cli.py db migrate`.")
        raise


def _format(keys: Sequence[ApiKey], now: datetime) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for key in keys:
        is_expired = key.expires_at is not None and key.expires_at <= now
        state = "revoked" if key.revoked_at else "expired" if is_expired else "active"
        times = (_time(each) for each in (key.created_at, key.expires_at, key.last_used_at))
        rows.append((key.name, key.id, state, *times, " ".join(key.scopes)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _time(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if moment else "-"
