from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from httpx import AsyncClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from src.db.session import Database
from src.repositories import item as repository
from src.repositories.item import prefix_query
from tests.fixtures.environment import API
from tests.fixtures.statements import planned

ITEMS = f"{API}/items/"
SEARCH = f"{ITEMS}search"


async def create(client: AsyncClient, name: str = "Lamp", **fields: Any) -> dict[str, Any]:
    response = await client.post(ITEMS, json={"name": name, **fields})
    assert response.status_code == 201, response.text
    item: dict[str, Any] = response.json()
    return item


async def change(client: AsyncClient, item: dict[str, Any], **changes: Any) -> dict[str, Any]:
    response = await client.patch(ITEMS + item["id"], json=changes)
    changed: dict[str, Any] = response.json()
    return changed


async def names(client: AsyncClient, path: str = ITEMS, **query: Any) -> list[str]:
    response = await client.get(path, params=query)
    assert response.status_code == 200, response.text
    return [item["name"] for item in response.json()["items"]]


class TestCreate:
    async def test_returns_the_item_and_its_location(self, client: AsyncClient) -> None:
        response = await client.post(ITEMS, json={"name": " Lamp ", "description": "Brass"})

        item = response.json()
        assert response.status_code == 201
        assert (item["name"], item["description"], item["status"]) == ("Lamp", "Brass", "draft")
        assert UUID(item["id"]).version == 7
        assert datetime.fromisoformat(item["created_at"]).utcoffset() is not None
        assert response.headers["location"] == f"{ITEMS}{item['id']}"
        assert response.headers["etag"] == '"1"'
        assert (await client.get(response.headers["location"])).json() == item

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"name": "   "},
            {"name": "x" * 201},
            {"name": None},
            {"name": "Lamp", "description": "\x00"},
            {"name": "Lamp", "colour": "green"},
            ["Lamp"],
        ],
    )
    async def test_rejects_an_invalid_body(self, client: AsyncClient, body: Any) -> None:
        response = await client.post(ITEMS, json=body)

        assert response.status_code == 422
        assert response.json()["errors"]


class TestList:
    async def test_newest_first_with_limit_and_offset(self, client: AsyncClient) -> None:
        for name in "abcd":
            await create(client, name)

        assert await names(client) == ["d", "c", "b", "a"]
        assert await names(client, limit=2, offset=1) == ["c", "b"]

    async def test_cursor_returns_every_item_once(self, client: AsyncClient) -> None:
        for name in "abcde":
            await create(client, name)

        seen: list[str] = []
        cursor: dict[str, str] = {}
        page: dict[str, Any] = {}
        for n in range(3):
            page = (await client.get(ITEMS, params={"limit": 2, **cursor})).json()
            seen += [item["name"] for item in page["items"]]
            cursor = {"cursor": page["next_cursor"]}
            await create(client, f"added {n}")

        assert seen == ["e", "d", "c", "b", "a"]
        assert page["next_cursor"] is None

    @pytest.mark.parametrize(
        ("sort", "expected"),
        [
            ("created_at", "bbac"),
            ("-created_at", "cabb"),
            ("name", "abbc"),
            ("-name", "cbba"),
        ],
    )
    async def test_sorted_pages(self, client: AsyncClient, sort: str, expected: str) -> None:
        for name in "bbac":
            await create(client, name)
        query: dict[str, Any] = {"sort": sort, "limit": 1}

        seen = ""
        while query.get("cursor", "first"):
            page = (await client.get(ITEMS, params=query)).json()
            seen += "".join(item["name"] for item in page["items"])
            query["cursor"] = page["next_cursor"]

        assert seen == expected
        assert await names(client, sort=sort, offset=1) == list(expected[1:])

    async def test_a_cursor_belongs_to_a_sort_order(self, client: AsyncClient) -> None:
        for name in "ab":
            await create(client, name)
        page = (await client.get(ITEMS, params={"sort": "name", "limit": 1})).json()

        for cursor in (page["next_cursor"], "x", "é", str(uuid4())):
            response = await client.get(ITEMS, params={"cursor": cursor})
            assert response.status_code == 422
            assert response.json()["type"] == "urn:problem-type:invalid-cursor"

    async def test_filters_by_time_of_creation(self, client: AsyncClient) -> None:
        await create(client, "a")
        before, after = "2026-01-01T00:00:00Z", "2126-01-01T00:00:00+02:00"

        assert await names(client, created_from=before, created_before=after) == ["a"]
        assert await names(client, created_from=after) == []
        assert await names(client, created_before=before) == []

    async def test_filters_to_the_millisecond(self, client: AsyncClient) -> None:
        moment = (await create(client, "a"))["created_at"]

        assert await names(client, created_from=moment) == ["a"]
        assert await names(client, created_before=moment) == []

    async def test_counts_no_more_items_than_the_documentation_says(
        self, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(repository, "MAX_TOTAL", 3)
        for name in "abcd":
            await create(client, name)

        assert (await client.get(ITEMS, params={"total": True})).json()["total"] == 3

    async def test_filters_by_status_and_counts(self, client: AsyncClient) -> None:
        await create(client, "draft")
        await change(client, await create(client, "active"), status="active")

        assert await names(client, status="active") == ["active"]
        assert (await client.get(ITEMS)).json()["total"] is None
        for query, total in (({}, 2), ({"status": "active"}, 1)):
            page = await client.get(ITEMS, params={"total": True, "limit": 1, **query})
            assert page.json()["total"] == total

    @pytest.mark.parametrize(
        "query",
        [
            {"limit": 101},
            {"offset": 10**30},
            {"cursor": str(uuid4()), "offset": 1},
            {"page": 2},
            {"sort": "description"},
            {"created_from": "2026-01-01T00:00:00"},
        ],
    )
    async def test_rejects_an_invalid_query(
        self, client: AsyncClient, query: dict[str, Any]
    ) -> None:
        assert (await client.get(ITEMS, params=query)).status_code == 422


class TestSearch:
    async def test_finds_whole_words_and_the_last_as_a_prefix(self, client: AsyncClient) -> None:
        lamp = await create(client, "Red lamp", description="Brass foot")
        await create(client, "Green chair")
        await change(client, lamp, name="Green lamp")

        assert await names(client, SEARCH, q="green la") == ["Green lamp"]
        assert await names(client, SEARCH, q="BRASS") == ["Green lamp"]
        assert await names(client, SEARCH, q="gre lamp") == []
        assert await names(client, SEARCH, q="red") == []

    async def test_a_match_in_the_name_comes_first(self, client: AsyncClient) -> None:
        await create(client, "Lamp")
        await create(client, "Table", description="for a lamp")

        assert await names(client, SEARCH, q="lamp") == ["Lamp", "Table"]

    @pytest.mark.parametrize(
        "text",
        ["'", "\\", "a\\'b", "a & | ! b", "a:*", "(", "<->", "%", "' OR 1=1 --", "🪔", "\x1c"],
    )
    async def test_operators_and_quotes_have_no_effect(
        self, client: AsyncClient, text: str
    ) -> None:
        assert await names(client, SEARCH, q=text) == []

    @pytest.mark.parametrize(
        "text", ["example.com", "lamp, 1.5-inch (LAMP)", "ann@example.c", "लैंप", "LAMP " * 40]
    )
    async def test_punctuation_separates_words(self, client: AsyncClient, text: str) -> None:
        await create(client, "Lamp, लैंप", description="1.5 inch: ann@example.com, example.com")

        assert len(await names(client, SEARCH, q=text)) == 1

    @pytest.mark.parametrize("text", ["lamp lamp " * 20, "lamp,Lamp;" * 20, "a@./_-" * 30])
    def test_repeated_words_do_not_make_a_query_expensive(self, text: str) -> None:
        query = prefix_query(text)

        assert query in {"'lamp':*", "'Lamp':*", "'a'"}

    def test_a_query_has_at_most_ten_words(self) -> None:
        query = prefix_query(" ".join(map(str, range(100))))

        assert query.split(" & ") == ["'99':*", *(f"'{number}'" for number in range(98, 89, -1))]

    @pytest.mark.parametrize("query", [{}, {"q": ""}, {"q": "  "}, {"q": "\x00"}])
    async def test_requires_a_word(self, client: AsyncClient, query: dict[str, str]) -> None:
        assert (await client.get(SEARCH, params=query)).status_code == 422


class TestUpdate:
    async def test_changes_only_the_given_fields(self, client: AsyncClient) -> None:
        item = await create(client, description="Brass")

        response = await client.patch(ITEMS + item["id"], json={"name": "Light"})

        changed = response.json()
        assert (changed["name"], changed["description"]) == ("Light", "Brass")
        assert changed["version"] == 2
        assert response.headers["etag"] == '"2"'
        assert await change(client, item) == changed

    async def test_null_removes_the_description_but_not_the_name(self, client: AsyncClient) -> None:
        item = await create(client, description="Brass")

        assert (await change(client, item, description=None))["description"] is None
        assert (await change(client, item, name=None))["status"] == 422

    @pytest.mark.parametrize(
        ("status", "changes", "problem"),
        [
            ("archived", {"name": "Light"}, "item-archived"),
            ("active", {"status": "draft"}, "item-transition"),
        ],
    )
    async def test_rejects_changes_that_the_status_does_not_allow(
        self, client: AsyncClient, status: str, changes: dict[str, str], problem: str
    ) -> None:
        item = await create(client)
        await change(client, item, status=status)

        response = await change(client, item, **changes)

        assert (response["status"], response["type"]) == (409, f"urn:problem-type:{problem}")


async def test_a_deletion_checks_the_version(client: AsyncClient) -> None:
    item = await create(client)
    path = ITEMS + item["id"]

    assert (await client.delete(path, headers={"If-Match": '"2"'})).status_code == 412
    assert (await client.delete(path, headers={"If-Match": '"1"'})).status_code == 204
    for method in ("GET", "PATCH", "DELETE"):
        body: dict[str, str] | None = {} if method == "PATCH" else None
        response = await client.request(method, path, json=body)
        assert response.status_code == 404
        assert response.json()["type"] == "urn:problem-type:item-not-found"


class TestPlans:
    """A table of any size is read by an index."""

    @pytest.fixture
    async def connection(self, database: Database) -> AsyncConnection:
        """The connection of the client, in a transaction with many items. Few are archived."""
        rows = "SELECT 'Lamp ' || n, CASE WHEN n % 5000 = 0 THEN 'archived' ELSE 'draft' END, 1"
        async with database.transaction() as db:
            await db.execute(
                text(
                    f"INSERT INTO item (name, status, version) {rows}"
                    " FROM generate_series(1, 20000) n"
                )
            )
            # As autovacuum would.
            await db.execute(text("SELECT gin_clean_pending_list('ix_item_search')"))
            await db.execute(text("ANALYZE item"))
        connection: AsyncConnection = database.reads.kw["bind"]
        return connection

    @pytest.mark.parametrize(
        ("query", "index"),
        [
            ({}, "pk_item"),
            ({"cursor": ""}, "pk_item"),
            ({"offset": 1000}, "pk_item"),
            ({"created_before": "2026-01-01T00:00:00Z"}, "pk_item"),
            ({"created_from": "2126-01-01T00:00:00Z"}, "pk_item"),
            ({"status": "archived"}, "ix_item_status_id"),
            ({"status": "archived", "sort": "name"}, "ix_item_status_id"),
            ({"sort": "name"}, "ix_item_name_id"),
            ({"sort": "-name", "cursor": ""}, "ix_item_name_id"),
        ],
    )
    async def test_of_a_page_and_its_total(
        self, client: AsyncClient, connection: AsyncConnection, query: dict[str, Any], index: str
    ) -> None:
        if "cursor" in query:
            sort = {"sort": query.get("sort", "-created_at")}
            page = await client.get(ITEMS, params=sort)
            query = {**query, "cursor": page.json()["next_cursor"]}
        with planned(connection) as plans:
            response = await client.get(ITEMS, params={**query, "total": True})

        assert response.status_code == 200
        page_plan, total_plan = plans
        assert index in page_plan
        assert "Seq Scan" not in page_plan
        assert "Limit" in total_plan

    @pytest.mark.parametrize("q", ["lamp 777", "lam"])
    async def test_of_a_search(
        self, client: AsyncClient, connection: AsyncConnection, q: str
    ) -> None:
        """Also if every item matches, although a scan of the table would then be cheaper."""
        with planned(connection) as plans:
            assert await names(client, SEARCH, q=q)

        assert "ix_item_search" in plans[0]
