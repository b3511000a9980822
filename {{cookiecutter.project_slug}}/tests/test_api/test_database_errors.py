"""Responses to values that PostgreSQL refuses."""

from datetime import datetime
from typing import Annotated, Any

import pytest
from fastapi import Body, FastAPI
from httpx import AsyncClient
from sqlalchemy import DateTime, bindparam, delete, literal, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from src.api.deps import DbReader, DbSession, ReadSession
from src.api.problems import DATABASE_ERRORS
from src.db.session import Database, NaiveDatetimeError
from tests.fixtures.client import connect
from tests.fixtures.notes import NOTES, Note, NoteRepository

TABLES = """
CREATE TEMPORARY TABLE parent (id int CONSTRAINT pk_parent PRIMARY KEY) ON COMMIT DROP;
CREATE TEMPORARY TABLE child (
    code varchar(3),
    price numeric(4, 2),
    day date,
    data jsonb,
    email text CONSTRAINT uq_child_email UNIQUE,
    number int CONSTRAINT uq_child_number UNIQUE DEFERRABLE INITIALLY DEFERRED,
    size int CONSTRAINT ck_child_size CHECK (size > 0),
    required int NOT NULL DEFAULT 1,
    parent_id int CONSTRAINT fk_child_parent REFERENCES parent
) ON COMMIT DROP;
INSERT INTO parent VALUES (1);
INSERT INTO child (email, number, parent_id) VALUES ('secret@example.com', 1, 1);
"""
REFUSED = {
    "INSERT INTO child (email) VALUES ('secret@example.com')": (409, "`uq_child_email`"),
    "INSERT INTO child (number) VALUES (1)": (409, "`uq_child_number`"),  # at commit
    "INSERT INTO child (parent_id) VALUES (2)": (409, "`fk_child_parent`"),
    "DELETE FROM parent": (409, "`fk_child_parent`"),
    "INSERT INTO child (required) VALUES (NULL)": (422, "`required`"),
    "INSERT INTO child (size) VALUES (0)": (422, "`ck_child_size`"),
    "INSERT INTO child (code) VALUES ('long')": (422, "too long"),
    "INSERT INTO child (price) VALUES (100)": (422, "out of range"),
    "INSERT INTO child (day) VALUES ('2026-02-30')": (422, "out of range"),
    "INSERT INTO child (day) VALUES ('someday')": (422, "date"),
    "INSERT INTO child (data) VALUES ('NaN')": (422, "format"),
    R"""INSERT INTO child (data) VALUES ('"\u0000"')""": (422, "NUL"),
    "SELECT 1 LIMIT -1": (422, "limit"),
    "SELECT 1 OFFSET -1": (422, "offset"),
    "SELECT 'a' ~ '('": (422, "regular expression"),
    "DO $$ BEGIN RAISE lock_not_available; END $$": (409, "Try again"),
    "DO $$ BEGIN RAISE query_canceled; END $$": (503, "Try again"),
    "INSERT INTO child (email) SELECT string_agg(sha256(n::text::bytea)::text, '')"
    " FROM generate_series(1, 200) n": (422, "too large"),
}


@pytest.fixture
def client(fresh_app: FastAPI, committing_database: Database) -> AsyncClient:
    @fresh_app.post("/sql")
    async def run(statement: Annotated[str, Body()], db: DbSession) -> None:
        for each in [*TABLES.split(";\n")[:-1], statement]:
            await db.execute(text(each.replace(":", R"\:")))

    @fresh_app.get("/notes")
    async def list_notes(db: ReadSession, version: int = 1, since: datetime | None = None) -> int:
        notes = select(Note).where(Note.version == version)
        if since is not None:
            notes = notes.where(Note.created_at >= since)
        return len((await db.scalars(notes)).all())

    filters = {
        "version": Note.version == bindparam("version"),
        "since": Note.created_at >= bindparam("since"),
    }

    @fresh_app.get("/rows")
    async def list_rows(db: DbReader, version: int = 1, since: datetime | None = None) -> int:
        return await NoteRepository(db).count_rows({"version": version, "since": since}, filters)

    return connect(fresh_app, committing_database)


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "1"}], ids=["plain", "idempotent"])
@pytest.mark.parametrize(("statement", "status", "detail"), [(k, *v) for k, v in REFUSED.items()])
async def test_refused_values(
    client: AsyncClient, statement: str, status: int, detail: str, headers: dict[str, str]
) -> None:
    response = await client.post("/sql", json=statement, headers=headers)

    problem = response.json()
    assert (response.status_code, problem["status"]) == (status, status)
    assert response.headers["content-type"] == "application/problem+json"
    assert detail in problem["detail"]
    assert not {"secret", "INSERT", "sqlalchemy"} & set(problem["detail"].split())


@pytest.mark.parametrize("path", ["/notes", "/rows"])
async def test_numbers_and_times_that_the_driver_refuses(client: AsyncClient, path: str) -> None:
    number = await client.get(path, params={"version": 2**31})
    naive = await client.get(path, params={"since": "2026-01-01T00:00:00"})
    aware = await client.get(path, params={"since": "2026-01-01T00:00:00Z"})

    assert (number.status_code, number.json()["detail"]) == (422, "A number is out of range.")
    assert naive.status_code == 422
    assert "UTC offset" in naive.json()["detail"]
    assert (aware.status_code, aware.json()) == (200, 0)


async def test_users_can_add_errors(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'AB001'; END $$"
    unknown = await client.post("/sql", json=raised)
    monkeypatch.setitem(DATABASE_ERRORS, "AB001", (418, "Only tea."))

    known = await client.post("/sql", json=raised)

    assert unknown.status_code == 500
    assert (known.status_code, known.json()["detail"]) == (418, "Only tea.")


async def test_a_value_of_the_wrong_type_is_a_bug(client: AsyncClient, fresh_app: FastAPI) -> None:
    @fresh_app.get("/bug")
    async def bug(db: ReadSession) -> None:
        await db.execute(select(Note).where(Note.version == literal("x", Note.version.type)))

    assert (await client.get("/bug")).status_code == 500


async def test_a_concurrent_change_of_a_version_is_a_conflict(
    client: AsyncClient, fresh_app: FastAPI
) -> None:
    @fresh_app.post("/change/{key}")
    async def change(key: str, db: DbSession) -> None:
        note = await db.get_one(Note, key)
        await db.execute(delete(Note), execution_options={"synchronize_session": False})
        note.text = "changed"

    created = await client.post(NOTES, json={"text": "Lamp"})

    assert (await client.post(f"/change/{created.json()['id']}")).status_code == 409


async def test_code_can_catch_the_error_and_its_text_is_readable(database: Database) -> None:
    async with database.transaction() as db:
        note = await NoteRepository(db).add(Note(text="Lamp"))
        with pytest.raises(IntegrityError, match='violates unique constraint "pk_note"') as caught:
            async with db.begin_nested():
                await db.execute(text("INSERT INTO test.note SELECT * FROM test.note"))
    assert str(note.id) not in str(caught.value)


@pytest.mark.parametrize(
    ("timezone", "value", "error"),
    [
        (True, "2026-01-01T00:00:00", NaiveDatetimeError),
        (False, "2026-01-01T00:00:00+00:00", TypeError),
    ],
)
async def test_a_datetime_must_fit_its_column(
    database: Database, *, timezone: bool, value: str, error: type[Exception]
) -> None:
    parameter: Any = bindparam("at", type_=DateTime(timezone=timezone))
    async with database.reads() as db:
        with pytest.raises(StatementError) as caught:
            await db.execute(select(parameter), {"at": datetime.fromisoformat(value)})
    assert isinstance(caught.value.orig, error)
