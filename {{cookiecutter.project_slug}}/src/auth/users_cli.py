"""The command group `python cli.py users`."""

import sys
from typing import Annotated

import typer
from pydantic import SecretStr, TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from src.auth.cli import in_transaction
from src.auth.passwords import Passwords, check
from src.core.config import get_settings
from src.core.logging import configure_logging
from src.db.models.user import User
from src.domain.errors import DomainError
from src.domain.principal import Role, Scope
from src.repositories.user import LoginSessionRepository, UserRepository
from src.schemas.user import Email, UserUpdate
from src.services.user import UserService

app = typer.Typer(
    help="Manage accounts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Address = Annotated[str, typer.Argument(help="E-mail address of the account.", metavar="EMAIL")]


def run(arguments: list[str], name: str) -> None:
    configure_logging(get_settings())
    try:
        app(arguments, prog_name=name)
    except DomainError as error:
        raise SystemExit(f"Error: {error}") from error


@app.command()
def create(
    email: Address,
    *,
    role: Annotated[Role, typer.Option(help="Role of the user.")] = Role.MEMBER,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
) -> None:
    """Create a verified account. The password must have at least 15 characters."""
    try:
        TypeAdapter(Email).validate_python(email)
    except ValidationError:
        raise typer.BadParameter(f"{email} is not an e-mail address in ASCII") from None
    if password_stdin:
        text = sys.stdin.readline().rstrip("\r\n")
    else:
        text = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    password = SecretStr(text)
    check(password, email, get_settings().PROJECT_NAME)

    async def add(db: AsyncSession) -> None:
        await UserService.create_user(db, email, await Passwords().hash(password), role)

    in_transaction(add)
    typer.echo(f"Created {email} with the role {role}.")


@app.command("list")
def list_users() -> None:
    """List the accounts, oldest first."""

    async def read(db: AsyncSession) -> None:
        async for user in await db.stream_scalars(select(User).order_by(User.id)):
            state = "disabled" if user.disabled_at else "active"
            if not user.verified_at:
                state = "not verified"
            typer.echo(f"{user.email}  {user.role}  {state}  {user.id}")

    in_transaction(read)


@app.command()
def disable(email: Address) -> None:
    """Disable an account, and end its sessions."""
    _update(email, UserUpdate(disabled=True))
    typer.echo(f"Disabled {email}.")


@app.command()
def enable(email: Address) -> None:
    """Enable a disabled account."""
    _update(email, UserUpdate(disabled=False))
    typer.echo(f"Enabled {email}.")


@app.command()
def set_role(email: Address, role: Annotated[Role, typer.Argument(help="The new role.")]) -> None:
    """Change the role of a user."""
    _update(email, UserUpdate(role=role))
    typer.echo(f"{email} has the role {role}.")


@app.command()
def logout(email: Address) -> None:
    """End all sessions of a user."""

    async def end(db: AsyncSession) -> int:
        return await LoginSessionRepository(db).end_all((await _find(db, email)).id)

    typer.echo(f"Sessions ended: {in_transaction(end)}.")


def _update(email: str, changes: UserUpdate) -> None:
    async def update(db: AsyncSession) -> None:
        user = await _find(db, email)
        await UserService.update_user(db, user.id, changes, frozenset(Scope))

    in_transaction(update)


async def _find(db: AsyncSession, email: str) -> User:
    user = await UserRepository(db).get_by_email(email)
    if user is None:
        raise SystemExit(f"Error: There is no account with the address {email}.")
    return user
