"""`python cli.py users`."""

import asyncio
import io
import sys
from collections.abc import Callable

import pytest
from sqlalchemy import URL

from src.db import open_database
from src.repositories.user import LoginSessionRepository, UserRepository
from tests.fixtures.commands import Outcome, Run
from tests.fixtures.users import EMAIL, PASSWORD

Users = Callable[..., Outcome]


@pytest.fixture
def users(run: Run, committing_url: URL, monkeypatch: pytest.MonkeyPatch) -> Users:
    """Run `cli.py users` with a password on standard input."""

    def users(*arguments: str, password: str = PASSWORD) -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{password}\n"))
        url = committing_url.render_as_string(hide_password=False)
        return run("users", *arguments, DATABASE_URL=url)

    return users


def create(users: Users, *arguments: str, email: str = EMAIL, password: str = PASSWORD) -> Outcome:
    return users("create", email, "--password-stdin", *arguments, password=password)


def test_the_first_administrator(users: Users) -> None:
    created = create(users, "--role", "admin")
    assert created.status == 0, created.err
    assert created.out.splitlines()[-1] == f"Created {EMAIL} with the role admin."
    assert PASSWORD not in created.out + created.err
    listed = users("list").out
    assert f"{EMAIL}  admin  active  " in listed


def test_invalid_accounts_are_refused_in_one_sentence(users: Users) -> None:
    create(users)
    again = create(users, email=EMAIL.upper())
    assert again.status == 1
    assert "There is already an account with the address" in again.err
    short = create(users, email="bob@example.com", password="short")
    assert short.status == 1
    assert "Use at least 15 characters" in short.err
    assert create(users, email="bob").status == 2
    assert create(users, "--role", "owner", email="bob@example.com").status == 2
    assert "There is no account" in users("disable", "bob@example.com").err
    assert users("list").out.count("@") == 1


def test_changes(users: Users) -> None:
    create(users)
    create(users, "--role", "admin", email="admin@example.com")
    assert users("disable", EMAIL).status == 0
    assert f"{EMAIL}  member  disabled  " in users("list").out
    assert users("enable", EMAIL).status == 0
    assert users("set-role", EMAIL, "admin").status == 0
    assert f"{EMAIL}  admin  active  " in users("list").out
    assert users("disable", EMAIL).status == 0
    last = users("set-role", "admin@example.com", "member")
    assert last.status == 1
    assert "This is the last administrator." in last.err


def test_logout_ends_all_sessions(users: Users, committing_url: URL) -> None:
    create(users)

    async def start() -> None:
        async with (
            open_database(committing_url, pool_size=1) as database,
            database.transaction() as db,
        ):
            user = await UserRepository(db).get_by_email(EMAIL)
            assert user is not None
            await LoginSessionRepository(db).start(user.id, "")

    asyncio.run(start())
    assert "Sessions ended: 1." in users("logout", EMAIL).out
    assert "Sessions ended: 0." in users("logout", EMAIL).out
