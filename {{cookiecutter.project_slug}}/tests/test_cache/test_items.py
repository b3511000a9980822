"""A cached response for items is never older than the last committed change."""

import pytest
from httpx import AsyncClient

from src.db.session import Database
from tests.fixtures.environment import API
from tests.fixtures.statements import recorded

ITEMS = f"{API}/items/"


@pytest.fixture
async def item(committing_client: AsyncClient) -> str:
    path: str = (await committing_client.post(ITEMS, json={"name": "Lamp"})).headers["location"]
    return path


async def test_responses_are_cached_until_a_change(
    committing_client: AsyncClient, committing_database: Database, item: str
) -> None:
    """For an item, the list and a search. The ETag is the version of the item."""
    lists = (ITEMS, f"{ITEMS}search?q=lamp", f"{ITEMS}search?q=table")
    first = [(await committing_client.get(path)).content for path in (item, *lists)]
    with recorded(committing_database) as sent:
        second = [(await committing_client.get(path)).content for path in (item, *lists)]
        etag = (await committing_client.get(item)).headers["etag"]
        known = await committing_client.get(item, headers={"If-None-Match": etag})
    assert (sent, second, known.status_code) == ([], first, 304)

    table, headers = {"name": "Table"}, {"If-Match": etag}
    assert (await committing_client.patch(item, json=table, headers=headers)).status_code == 200

    changed = await committing_client.get(item, headers={"If-None-Match": etag})
    assert changed.json()["name"] == "Table"
    found = [(await committing_client.get(path)).json()["items"] for path in lists]
    assert [[each["name"] for each in items] for items in found] == [["Table"], [], ["Table"]]

    await committing_client.delete(item)

    assert (await committing_client.get(item)).status_code == 404
    assert (await committing_client.get(ITEMS)).json()["items"] == []
