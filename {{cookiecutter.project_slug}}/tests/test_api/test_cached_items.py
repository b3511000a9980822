"""Items are read from the cache, and never as they were before a change."""

import pytest
from httpx import AsyncClient

from src.db.session import Database
from tests.fixtures.statements import recorded

ITEMS = "/api/v1/items/"


@pytest.fixture
async def item(committing_client: AsyncClient) -> str:
    path: str = (await committing_client.post(ITEMS, json={"name": "Lamp"})).headers["location"]
    return path


@pytest.mark.parametrize("path", ["{item}", ITEMS, f"{ITEMS}search?q=lamp"])
async def test_a_second_read_sends_no_statement(
    committing_client: AsyncClient, committing_database: Database, item: str, path: str
) -> None:
    path = path.replace("{item}", item)
    first = await committing_client.get(path)
    with recorded(committing_database) as sent:
        second = await committing_client.get(path)

    assert sent == []
    assert second.content == first.content


async def test_a_change_is_seen_at_once(committing_client: AsyncClient, item: str) -> None:
    """In the item, in the list and in what is found."""
    for path in (item, ITEMS, f"{ITEMS}search?q=table"):
        await committing_client.get(path)

    await committing_client.patch(item, json={"name": "Table"})

    assert (await committing_client.get(item)).json()["name"] == "Table"
    for path in (ITEMS, f"{ITEMS}search?q=table"):
        assert (await committing_client.get(path)).json()["items"][0]["name"] == "Table"

    await committing_client.delete(item)

    assert (await committing_client.get(item)).status_code == 404
    assert (await committing_client.get(ITEMS)).json()["items"] == []


async def test_the_etag_of_a_cached_item_is_its_version(
    committing_client: AsyncClient, item: str
) -> None:
    """It serves a change, and tells a client that nothing has changed."""
    for _ in range(2):
        read = await committing_client.get(item)
    known = {"If-None-Match": read.headers["etag"]}
    assert (await committing_client.get(item, headers=known)).status_code == 304

    change = {"If-Match": read.headers["etag"]}
    changed = await committing_client.patch(item, json={"name": "Table"}, headers=change)
    assert changed.status_code == 200
    assert (await committing_client.get(item, headers=known)).json()["name"] == "Table"
