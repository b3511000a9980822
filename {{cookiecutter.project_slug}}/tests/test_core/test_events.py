import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import URL

from main import create_application
from src.core.config import Settings
from src.core.events import build_lifespan
from tests.fixtures.client import connect
from tests.fixtures.environment import API


def settings_for(url: URL) -> Settings:
    return Settings(ENV="test", DATABASE_URL=SecretStr(url.render_as_string(hide_password=False)))


async def test_the_lifespan_opens_the_database(committing_url: URL) -> None:
    settings = settings_for(committing_url)
    app = create_application(settings)

    async with app.router.lifespan_context(app) as state:
        assert state is not None
        ready = await connect(app, state["database"], settings).get(f"{API}/health/ready")

    assert ready.status_code == 200


async def test_the_log_of_production_lists_public_pages(
    committing_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    production = settings_for(committing_url).model_copy(
        update={"ENV": "production", "METRICS_PORT": 0}
    )

    async with build_lifespan(production)(FastAPI()):
        pass

    assert "'pages': ['app-info', 'docs']" in caplog.text
