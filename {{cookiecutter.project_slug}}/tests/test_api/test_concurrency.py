"""Requests that run at once, on their own connections."""

import asyncio

import pytest
from httpx import AsyncClient

from tests.fixtures.notes import NOTES


@pytest.mark.parametrize(
    ("headers", "statuses", "version"),
    [({"If-Match": '"1"'}, [200] + [412] * 7, 2), ({}, [200] * 8, 9)],
    ids=["one change wins with If-Match", "all changes happen without"],
)
async def test_changes_of_one_row(
    committing_client: AsyncClient, headers: dict[str, str], statuses: list[int], version: int
) -> None:
    created = await committing_client.post(NOTES, json={"text": "Lamp"})
    path = created.headers["location"]

    responses = await asyncio.gather(
        *(
            committing_client.patch(path, json={"text": f"Lamp {n}"}, headers=headers)
            for n in range(8)
        )
    )

    assert sorted(response.status_code for response in responses) == statuses
    assert (await committing_client.get(path)).json()["version"] == version


async def test_more_requests_than_connections_wait_their_turn(
    committing_client: AsyncClient,
) -> None:
    responses = await asyncio.gather(
        *(committing_client.post(NOTES, json={"text": f"Lamp {n}"}) for n in range(60))
    )

    assert {response.status_code for response in responses} == {201}
