"""The application with endpoints that do not end."""

import asyncio
import time
from collections.abc import AsyncGenerator

import structlog
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import text

from main import create_application
from src.api.deps import DbSession, ExpensiveReadSession, ReadSession

log = structlog.get_logger(__name__)
app = create_application()
STARTED = "endless_request_started"
SECONDS = 600


@app.get("/sleeping")
async def sleeping() -> None:
    log.warning(STARTED)
    await asyncio.sleep(SECONDS)


@app.get("/streaming")
async def streaming() -> StreamingResponse:
    async def lines() -> AsyncGenerator[str]:
        try:
            yield "first line"
            await asyncio.sleep(SECONDS)
        finally:
            log.warning("endless_stream_ended")

    return StreamingResponse(lines())


@app.get("/in-thread")
def in_thread() -> None:
    log.warning(STARTED)
    time.sleep(SECONDS)


@app.get("/in-database")
async def in_database(db: ReadSession) -> None:
    log.warning(STARTED)
    await db.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": SECONDS})


@app.get("/expensive")
async def expensive(db: ExpensiveReadSession) -> None:
    await db.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": SECONDS})


@app.get("/in-transaction")
async def in_transaction(db: DbSession) -> None:
    log.warning(STARTED)
    await db.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": SECONDS})


def application() -> FastAPI:
    return app
