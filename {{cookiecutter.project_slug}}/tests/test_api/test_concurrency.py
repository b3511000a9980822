"""Requests that meet each other, on connections of their own."""

import asyncio

import pytest
from httpx import AsyncClient

from src.db import session as db_session

ITEMS = "/api/v1/items/"


@pytest.fixture(autouse=True)
def _patient_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a connection may be long in use."""
    monkeypatch.setattr(db_session, "POOL_TIMEOUT_SECONDS", 60)


async def test_of_many_changes_to_one_version_one_wins(committing_client: AsyncClient) -> None:
    item = (await committing_client.post(ITEMS, json={"name": "Lamp"})).json()

    responses = await asyncio.gather(
        *(
            committing_client.patch(
                ITEMS + item["id"], json={"name": f"Lamp {n}"}, headers={"If-Match": '"1"'}
            )
            for n in range(8)
        )
    )

    assert sorted(response.status_code for response in responses) == [200] + [412] * 7
    assert (await committing_client.get(ITEMS + item["id"])).json()["version"] == 2


async def test_changes_without_a_condition_all_happen(committing_client: AsyncClient) -> None:
    item = (await committing_client.post(ITEMS, json={"name": "Lamp"})).json()

    responses = await asyncio.gather(
        *(committing_client.patch(ITEMS + item["id"], json={"name": f"Lamp {n}"}) for n in range(8))
    )

    assert {response.status_code for response in responses} == {200}
    assert (await committing_client.get(ITEMS + item["id"])).json()["version"] == 9


async def test_more_requests_than_connections_wait_their_turn(
    committing_client: AsyncClient,
) -> None:
    responses = await asyncio.gather(
        *(committing_client.post(ITEMS, json={"name": f"Lamp {n}"}) for n in range(60))
    )

    assert {response.status_code for response in responses} == {201}
