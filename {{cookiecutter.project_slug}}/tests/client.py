from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from starlette.types import Receive, Scope, Send

from src import (
    # % if cookiecutter.cache_backend != "none"
    cache,
    # % endif
    db,
)
from src.core.config import Settings, get_settings
from src.core.events import State


def connect(
    app: FastAPI,
    database: db.Database,
    settings: Settings | None = None,
    *,
    # % if cookiecutter.cache_backend != "none"
    own_cache: cache.Cache | None = None,
    # % endif
    root_path: str = "",
) -> AsyncClient:
    """Open a client whose requests find the state that the lifespan would have given them."""
    state = State(
        settings=settings or get_settings(),
        database=database,
        # % if cookiecutter.cache_backend != "none"
        cache=own_cache or cache.Cache(cache.MemoryBackend(), ttl=60),
        # % endif
    )

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    return AsyncClient(
        transport=ASGITransport(with_state, root_path=root_path), base_url="http://test"
    )
