"""Minimal applications: what a server, a cache and a query cost at least."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
from fastapi import FastAPI, Request, Response
from pydantic_core import from_json, to_json
from redis.asyncio import Redis

BODY = b'{"status":"ok"}'
CACHED = b"x" * 230  # the size of an item as JSON
COLUMNS = "id, name, description, status, version, created_at, updated_at"


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer each request without a framework."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    url = os.environ["DATABASE_URL"].replace("+asyncpg", "")
    async with (
        asyncpg.create_pool(url) as app.state.pool,
        Redis.from_url(os.environ["REDIS_URL"]) as app.state.redis,
    ):
        await app.state.redis.set("item", CACHED)
        app.state.cached = {"item": CACHED}
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/items/{item_id}")
async def from_postgres(item_id: UUID) -> Response:
    row = await app.state.pool.fetchrow(f"SELECT {COLUMNS} FROM item WHERE id = $1", item_id)  # noqa: S608
    return Response(to_json(dict(row)), media_type="application/json")


@app.get("/items/")
async def list_from_postgres(limit: int) -> Response:
    query = f"SELECT {COLUMNS} FROM item ORDER BY id DESC LIMIT $1"  # noqa: S608 - a constant
    rows = await app.state.pool.fetch(query, limit)
    return Response(to_json([dict(row) for row in rows]), media_type="application/json")


@app.post("/items/", status_code=201)
async def create_in_postgres(request: Request) -> Response:
    query = f"INSERT INTO item (name, description) VALUES ($1, $2) RETURNING {COLUMNS}"  # noqa: S608
    values = from_json(await request.body())
    row = await app.state.pool.fetchrow(query, values["name"], values["description"])
    return Response(to_json(dict(row)), status_code=201, media_type="application/json")


@app.get("/dict/{item_id}")
async def from_dict(item_id: UUID) -> Response:  # noqa: ARG001 - parsed, as in the service
    return Response(app.state.cached["item"], media_type="application/json")


@app.get("/valkey/{item_id}")
async def from_valkey(item_id: UUID) -> Response:  # noqa: ARG001 - as above
    return Response(await app.state.redis.get("item"), media_type="application/json")
