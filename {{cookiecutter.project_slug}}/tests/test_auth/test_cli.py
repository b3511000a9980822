"""`python cli.py keys`, on a database."""

from collections.abc import Callable

import pytest
from sqlalchemy import URL

from src.auth import api_keys
from src.core.config import get_settings
from src.domain.principal import ROLES, Role
from tests.fixtures.commands import Outcome, Run

UNREACHABLE = "postgresql://app:pw@127.0.0.1:1/app"
ADMIN = ("--role", "admin")  # the role `member` may have no scopes
ADMIN_SCOPES = sorted(ROLES[Role.ADMIN])

Keys = Callable[..., Outcome]


@pytest.fixture
def keys(run: Run, committing_url: URL) -> Keys:
    url = committing_url.render_as_string(hide_password=False)
    return lambda *arguments: run("keys", *arguments, DATABASE_URL=url)


def create(keys: Keys, name: str, *options: str) -> api_keys.Credential:
    outcome = keys("create", name, *(options or ADMIN))
    assert outcome.status == 0, outcome.err
    assert f"{name} (" in outcome.err
    credential = api_keys.parse(outcome.out.removesuffix("\n"))
    assert credential, outcome.out
    return credential


def rows(keys: Keys) -> list[list[str]]:
    header, *lines = keys("list").out.splitlines()
    assert header.split()[:3] == ["NAME", "ID", "STATE"]
    return [line.split() for line in lines]


def test_create_list_rotate_and_revoke(keys: Keys) -> None:
    key = create(keys, "importer", *ADMIN, "--expires", "90d")
    other = create(keys, "exporter")

    rotated = keys("rotate", "importer", "--grace", "1h")
    revoked = keys("revoke", other.id)

    new = api_keys.parse(rotated.out.strip())
    assert new
    assert (new.id, new.secret != key.secret) == (key.id, True)
    assert revoked.out == f"Revoked: exporter ({other.id}).\n"
    first, second = rows(keys)
    assert first[:3] == ["importer", key.id, "active"]
    assert second[:3] == ["exporter", other.id, "revoked"]
    assert first[len(first) - len(ADMIN_SCOPES) :] == ADMIN_SCOPES
    text = keys("list").out
    assert not any(each.secret in text for each in (key, new, other))


def test_the_key_starts_with_the_name_of_the_project(keys: Keys) -> None:
    outcome = keys("create", "importer", *ADMIN)

    assert outcome.out.startswith(f"{get_settings().api_key_prefix}_")


def test_a_name_is_free_after_a_revocation(keys: Keys) -> None:
    create(keys, "importer")
    second = keys("create", "importer", *ADMIN)
    keys("revoke", "importer")
    create(keys, "importer")

    assert second.status == 1
    assert second.err == "Error: A key with the name importer exists. Revoke it, or rotate it."
    assert [row[2] for row in rows(keys)] == ["revoked", "active"]


def test_a_second_rotation_does_not_end_the_grace_period_of_the_first(keys: Keys) -> None:
    create(keys, "importer")
    keys("rotate", "importer", "--grace", "1h")

    again = keys("rotate", "importer", "--grace", "1h")

    assert again.status == 1
    assert "The previous secret of importer is valid until" in again.err
    assert keys("rotate", "importer").status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "a", "--scope", "paint"], "there is no scope 'paint'; the scopes are:"),
        (["create", "a", "--role", "painter"], "'painter' is not one of"),
        (["create", "two words", *ADMIN], "use 1 to 64 letters"),
        (["create", "", *ADMIN], "use 1 to 64 letters"),
        (["create", "a", *ADMIN, "--expires", "soon"], "'soon' is not a duration such as"),
        (["create", "a", *ADMIN, "--expires", "0d"], "'0d' is not a duration such as"),
        (["rotate", "a", "--grace", "-1h"], "'-1h' is not a duration such as"),
        (["revoke", "absent"], "There is no active key with the name or ID absent."),
        (["rotate", "absent"], "There is no active key with the name or ID absent."),
        (["revoke", "\udcff"], "use 1 to 64 letters"),
    ],
)
def test_invalid_arguments_get_one_sentence(keys: Keys, arguments: list[str], message: str) -> None:
    outcome = keys(*arguments)

    assert outcome.status != 0
    assert message in " ".join(outcome.err.replace("│", " ").split())
    assert outcome.out == ""


def test_database_is_unavailable_or_not_migrated(run: Run, fresh_url: URL) -> None:
    url = fresh_url.render_as_string(hide_password=False)
    run("db", "downgrade", "--revision", "base", DATABASE_URL=url)

    for command in (["list"], ["create", "a", *ADMIN], ["revoke", "a"]):
        unavailable = run("keys", *command, DATABASE_URL=UNREACHABLE)
        assert unavailable.err.startswith("Error: PostgreSQL at 127.0.0.1:1 is unavailable")
        not_migrated = run("keys", *command, DATABASE_URL=url)
        assert not_migrated.err.startswith("Error: The database lacks a table.")
        assert unavailable.status == not_migrated.status == 1
