"""Compare the cost of reading an item from PostgreSQL with FastAPI's tutorial: processor time.

The tutorial's application uses async SQLAlchemy with a session from a `yield` dependency and a
response model, without the service's middleware, metrics and headers. Both run in this process, on
one event loop and one database, in turns, so that noise of the machine affects both.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException
from harness import an_item, cost, migrated
from report import ROUNDS, Costs, report
from sqlalchemy import URL, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from main import create_application
from src.core.config import get_settings
from src.db.models.item import Item
from src.db.session import open_database
from src.schemas.item import ItemResponse


def tutorial(url: URL) -> FastAPI:
    sessions = async_sessionmaker(create_async_engine(url), expire_on_commit=False)
    app = FastAPI()

    async def get_db() -> AsyncGenerator[AsyncSession]:
        async with sessions() as session:
            yield session

    @app.get("/api/v1/items/{item_id}", response_model=ItemResponse)
    async def get_item(item_id: UUID, db: Annotated[AsyncSession, Depends(get_db)]) -> Item:
        item = (await db.execute(select(Item).where(Item.id == item_id))).scalar_one_or_none()
        if item is None:
            raise HTTPException(404)
        return item

    return app


async def compare(url: URL) -> None:
    settings = get_settings()
    apps = {"tutorial": tutorial(url), "service": create_application(settings)}
    logging.disable(logging.CRITICAL)
    async with open_database(url, pool_size=15) as database:
        path = await an_item(database)
        state = {"settings": settings, "database": database}  # no cache
        costs: Costs = {name: [] for name in apps}
        for _ in range(ROUNDS):
            for name, app in apps.items():
                costs[name].append(await cost(app, path, state, clients=1))
    report("A read from PostgreSQL, without the cache", costs)


if __name__ == "__main__":
    with migrated() as url:
        asyncio.run(compare(url))
