from pydantic import SecretStr
from sqlalchemy import URL

from main import create_application
from src.core.config import Settings
from tests.fixtures.client import connect
from tests.fixtures.environment import API


async def test_the_lifespan_opens_the_database(committing_url: URL) -> None:
    url = SecretStr(committing_url.render_as_string(hide_password=False))
    settings = Settings(ENV="test", DATABASE_URL=url)
    app = create_application(settings)

    async with app.router.lifespan_context(app) as state:
        assert state is not None
        ready = await connect(app, state["database"], settings).get(f"{API}/health/ready")

    assert ready.status_code == 200
