from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from httpx import AsyncClient

ITEMS = "/api/v1/items/"


async def create(client: AsyncClient, name: str = "Lamp", **fields: Any) -> dict[str, Any]:
    response = await client.post(ITEMS, json={"name": name, **fields})
    assert response.status_code == 201, response.text
    item: dict[str, Any] = response.json()
    return item


async def names(client: AsyncClient, path: str = ITEMS, **query: Any) -> list[str]:
    response = await client.get(path, params=query)
    assert response.status_code == 200, response.text
    return [item["name"] for item in response.json()["items"]]


class TestCreate:
    async def test_answers_with_the_item_and_where_it_is(self, client: AsyncClient) -> None:
        response = await client.post(ITEMS, json={"name": " Lamp ", "description": "Brass"})

        item = response.json()
        assert response.status_code == 201
        assert item["name"] == "Lamp"
        assert item["status"] == "draft"
        assert response.headers["location"] == f"{ITEMS}{item['id']}"
        assert response.headers["etag"] == '"1"'

    async def test_keys_are_uuid7_and_times_are_aware(self, client: AsyncClient) -> None:
        before = datetime.now(UTC)
        item = await create(client)

        assert UUID(item["id"]).version == 7
        created_at = datetime.fromisoformat(item["created_at"])
        assert created_at.utcoffset() is not None
        assert abs((created_at - before).total_seconds()) < 60

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"name": ""},
            {"name": "   "},
            {"name": "x" * 201},
            {"name": None},
            {"name": "NUL \x00 inside"},
            {"name": "Lamp", "description": "\x00"},
            {"name": "Lamp", "colour": "green"},
            ["Lamp"],
        ],
    )
    async def test_refuses_what_is_not_an_item(self, client: AsyncClient, body: Any) -> None:
        response = await client.post(ITEMS, json=body)

        assert response.status_code == 422
        assert response.json()["errors"]

    async def test_refuses_half_a_surrogate_pair(self, client: AsyncClient) -> None:
        response = await client.post(
            ITEMS, content=rb'{"name": "\ud800"}', headers={"Content-Type": "application/json"}
        )

        assert response.status_code == 422

    async def test_keeps_every_other_character(self, client: AsyncClient) -> None:
        name = "Ünïcødé 🪔 'quoted' \"double\" \\ % & <b> \u202e"
        item = await create(client, name, description="two\nlines\ttabs")

        found = (await client.get(ITEMS + item["id"])).json()
        assert (found["name"], found["description"]) == (name.strip(), "two\nlines\ttabs")


class TestRead:
    async def test_finds_one(self, client: AsyncClient) -> None:
        item = await create(client)

        response = await client.get(ITEMS + item["id"])

        assert response.json() == item
        assert response.headers["etag"] == '"1"'

    async def test_unknown_is_404(self, client: AsyncClient) -> None:
        response = await client.get(f"{ITEMS}{uuid4()}")

        assert response.status_code == 404
        assert response.json()["type"] == "urn:problem-type:item-not-found"

    async def test_malformed_key_is_422(self, client: AsyncClient) -> None:
        assert (await client.get(f"{ITEMS}lamp")).status_code == 422


class TestList:
    async def test_newest_first(self, client: AsyncClient) -> None:
        for name in "abc":
            await create(client, name)

        assert await names(client) == ["c", "b", "a"]

    async def test_limit_and_offset(self, client: AsyncClient) -> None:
        for name in "abcd":
            await create(client, name)

        assert await names(client, limit=2, offset=1) == ["c", "b"]

    async def test_cursor_walks_all_pages_once(self, client: AsyncClient) -> None:
        for name in "abcde":
            await create(client, name)

        seen: list[str] = []
        cursor: dict[str, str] = {}
        page: dict[str, Any] = {}
        for _ in range(3):
            page = (await client.get(ITEMS, params={"limit": 2, **cursor})).json()
            seen += [item["name"] for item in page["items"]]
            cursor = {"cursor": page["next_cursor"]}

        assert seen == ["e", "d", "c", "b", "a"]
        assert page["next_cursor"] is None

    async def test_cursor_is_not_moved_by_new_items(self, client: AsyncClient) -> None:
        for name in "abc":
            await create(client, name)
        page = (await client.get(ITEMS, params={"limit": 1})).json()
        await create(client, "new")

        assert await names(client, cursor=page["next_cursor"]) == ["b", "a"]

    async def test_total_only_when_asked_for(self, client: AsyncClient) -> None:
        for name in "abc":
            await create(client, name)

        assert (await client.get(ITEMS)).json()["total"] is None
        page = (await client.get(ITEMS, params={"total": True, "limit": 1})).json()
        assert page["total"] == 3

    async def test_by_status(self, client: AsyncClient) -> None:
        await create(client, "draft")
        active = await create(client, "active")
        await client.patch(ITEMS + active["id"], json={"status": "active"})

        assert await names(client, status="active") == ["active"]
        page = await client.get(ITEMS, params={"status": "active", "total": True})
        assert page.json()["total"] == 1

    @pytest.mark.parametrize(
        "query",
        [
            {"limit": 0},
            {"limit": 101},
            {"offset": -1},
            {"offset": 10**30},
            {"cursor": "x"},
            {"cursor": str(uuid4()), "offset": 1},
            {"status": "lost"},
            {"page": 2},
        ],
    )
    async def test_refuses_a_query_that_is_not_valid(
        self, client: AsyncClient, query: dict[str, Any]
    ) -> None:
        assert (await client.get(ITEMS, params=query)).status_code == 422


class TestSearch:
    PATH = f"{ITEMS}search"

    async def test_finds_whole_words_and_the_beginning_of_the_last(
        self, client: AsyncClient
    ) -> None:
        await create(client, "Green lamp", description="Brass foot")
        await create(client, "Green chair")

        assert await names(client, self.PATH, q="green la") == ["Green lamp"]
        assert await names(client, self.PATH, q="BRASS") == ["Green lamp"]
        assert await names(client, self.PATH, q="gre lamp") == []

    async def test_a_match_in_the_name_comes_first(self, client: AsyncClient) -> None:
        await create(client, "Lamp")
        await create(client, "Table", description="for a lamp")

        assert await names(client, self.PATH, q="lamp") == ["Lamp", "Table"]

    async def test_follows_a_change_of_the_text(self, client: AsyncClient) -> None:
        item = await create(client, "Lamp")
        await client.patch(ITEMS + item["id"], json={"name": "Chair"})

        assert await names(client, self.PATH, q="lamp") == []
        assert await names(client, self.PATH, q="chair") == ["Chair"]

    @pytest.mark.parametrize(
        "text",
        [
            "'",
            "\\",
            "a\\'b",
            "a & | ! b",
            "a:*",
            "(",
            "<->",
            "!!!",
            "%",
            "' OR 1=1 --",
            "🪔",
            "\x1c",
        ],
    )
    async def test_operators_and_quotes_are_only_text(self, client: AsyncClient, text: str) -> None:
        assert await names(client, self.PATH, q=text) == []

    @pytest.mark.parametrize("query", [{}, {"q": ""}, {"q": "  "}, {"q": "\x00"}])
    async def test_needs_words(self, client: AsyncClient, query: dict[str, str]) -> None:
        assert (await client.get(self.PATH, params=query)).status_code == 422


class TestUpdate:
    async def test_changes_only_what_is_given(self, client: AsyncClient) -> None:
        item = await create(client, description="Brass")

        response = await client.patch(ITEMS + item["id"], json={"name": "Light"})

        changed = response.json()
        assert (changed["name"], changed["description"]) == ("Light", "Brass")
        assert changed["version"] == 2
        assert response.headers["etag"] == '"2"'

    async def test_null_takes_the_description_away_but_not_the_name(
        self, client: AsyncClient
    ) -> None:
        item = await create(client, description="Brass")

        response = await client.patch(ITEMS + item["id"], json={"description": None})
        assert response.json()["description"] is None

        response = await client.patch(ITEMS + item["id"], json={"name": None})
        assert response.status_code == 422

    async def test_nothing_given_changes_nothing(self, client: AsyncClient) -> None:
        item = await create(client)

        assert (await client.patch(ITEMS + item["id"], json={})).json() == item

    async def test_unknown_is_404(self, client: AsyncClient) -> None:
        assert (await client.patch(f"{ITEMS}{uuid4()}", json={})).status_code == 404

    async def test_archived_cannot_be_changed(self, client: AsyncClient) -> None:
        item = await create(client)
        await client.patch(ITEMS + item["id"], json={"status": "archived"})

        response = await client.patch(ITEMS + item["id"], json={"name": "Light"})

        assert response.status_code == 409
        assert response.json()["type"] == "urn:problem-type:item-archived"
        assert response.json()["detail"] == "An archived item cannot be changed."

    async def test_no_way_back_to_draft(self, client: AsyncClient) -> None:
        item = await create(client)
        await client.patch(ITEMS + item["id"], json={"status": "active"})

        response = await client.patch(ITEMS + item["id"], json={"status": "draft"})

        assert response.status_code == 409
        assert response.json()["type"] == "urn:problem-type:item-transition"


class TestIfMatch:
    @pytest.mark.parametrize("tag", ['"1"', "*", '"7", "1"'])
    async def test_current_version_may_be_changed(self, client: AsyncClient, tag: str) -> None:
        item = await create(client)

        response = await client.patch(
            ITEMS + item["id"], json={"name": "Light"}, headers={"If-Match": tag}
        )

        assert response.status_code == 200

    async def test_tags_may_stand_on_several_lines(self, client: AsyncClient) -> None:
        item = await create(client)

        response = await client.patch(
            ITEMS + item["id"], json={}, headers=[("If-Match", '"9"'), ("If-Match", '"1"')]
        )

        assert response.status_code == 200

    @pytest.mark.parametrize(
        "tag", ['"2"', 'W/"1"', '"x"', "", "1", '"1', '"01"', '"' + "9" * 5000 + '"']
    )
    async def test_any_other_is_412(self, client: AsyncClient, tag: str) -> None:
        item = await create(client)
        headers = {"If-Match": tag}

        changed = await client.patch(ITEMS + item["id"], json={"name": "x"}, headers=headers)
        deleted = await client.delete(ITEMS + item["id"], headers=headers)

        assert (changed.status_code, deleted.status_code) == (412, 412)
        assert (await client.get(ITEMS + item["id"])).json() == item


class TestDelete:
    async def test_is_gone(self, client: AsyncClient) -> None:
        item = await create(client)

        response = await client.delete(ITEMS + item["id"])

        assert (response.status_code, response.content) == (204, b"")
        assert (await client.get(ITEMS + item["id"])).status_code == 404

    async def test_unknown_is_404(self, client: AsyncClient) -> None:
        assert (await client.delete(f"{ITEMS}{uuid4()}")).status_code == 404
