from datetime import UTC, datetime, timedelta

import pytest
from httpx import AsyncClient

from src.db.models.item import Item
from src.db.session import Database
from src.services.item_report import ItemReportService

REPORTS = "/api/v1/item-reports/"
TODAY = datetime.now(UTC).date()


async def make(database: Database, *, days: int = 0) -> str:
    """Make the report on the day so many days ago; return which day that is."""
    day = TODAY - timedelta(days=days)
    async with database.transaction() as db:
        await ItemReportService.make(db, day)
    return day.isoformat()


async def test_a_report_says_what_happened(client: AsyncClient, database: Database) -> None:
    noon = datetime(2026, 1, 15, 12, tzinfo=UTC)
    async with database.transaction() as db:
        db.add(Item(name="Lamp", created_at=noon))
    async with database.transaction() as db:
        await ItemReportService.make(db, noon.date())

    body = (await client.get(f"{REPORTS}2026-01-15")).json()

    assert datetime.fromisoformat(body.pop("made_at")).tzinfo is not None
    assert body == {
        "day": "2026-01-15",
        "created": 1,
        "changed": 0,
        "archived": 0,
        "totals": {"draft": 1, "active": 0, "archived": 0},
    }


async def test_a_day_has_no_report_until_it_is_made(
    client: AsyncClient, database: Database
) -> None:
    missing = await client.get(f"{REPORTS}{TODAY}")
    await make(database)

    assert missing.status_code == 404
    assert missing.json()["type"] == "urn:problem-type:item-report-not-found"
    assert (await client.get(f"{REPORTS}{TODAY}")).status_code == 200


async def test_the_latest_day_comes_first(client: AsyncClient, database: Database) -> None:
    assert (await client.get(REPORTS)).json() == {"reports": []}
    days = [await make(database, days=number) for number in (2, 0, 1)]

    all_of_them = (await client.get(REPORTS)).json()["reports"]
    latest = (await client.get(REPORTS, params={"limit": 2})).json()["reports"]

    assert [report["day"] for report in all_of_them] == sorted(days, reverse=True)
    assert latest == all_of_them[:2]


@pytest.mark.parametrize("path", ["tomorrow", "2026-02-30", "?limit=0", "?limit=101"])
async def test_what_cannot_be_is_refused(client: AsyncClient, path: str) -> None:
    response = await client.get(REPORTS + path)

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
