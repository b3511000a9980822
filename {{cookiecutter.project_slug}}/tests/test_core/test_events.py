from fastapi import FastAPI
from httpx import AsyncClient
from pydantic import SecretStr
from sqlalchemy import URL

from main import create_application
from src.core.config import Settings
from tests.fixtures.client import connect


async def test_the_process_opens_and_closes_what_requests_use(committing_url: URL) -> None:
    url = SecretStr(committing_url.render_as_string(hide_password=False))
    settings = Settings(ENV="test", DATABASE_URL=url)
    app: FastAPI = create_application(settings)

    async with app.router.lifespan_context(app) as state:
        assert state is not None
        client: AsyncClient = connect(app, state["database"], settings)
        created = await client.post("/api/v1/items/", json={"name": "Lamp"})

    assert created.status_code == 201
