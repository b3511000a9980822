"""The application's lifespan: opens resources at startup, and closes them in reverse order."""

import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NotRequired, TypedDict

import structlog
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import Lifespan

from src import (
    # % if cookiecutter.cache_backend != "none"
    cache,
    # % endif
    db,
    # % if cookiecutter.__oidc
    oidc,
    # % endif
    # % if cookiecutter.__queue
    tasks,
    # % endif
)
from src.auth import (
    key_uses,
    # % if cookiecutter.__users
    passwords,
    # % endif
)
from src.core.config import Settings
from src.core.metrics_server import open_metrics_server
from src.core.rate_limits import Count, MemoryCounters
from src.core.shutdown import Shutdown, end_with_parent

log = structlog.get_logger(__name__)


class State(TypedDict):
    """The contents of `request.state`."""

    settings: Settings
    # % if cookiecutter.cache_backend != "none"
    cache: cache.Cache
    # % endif
    database: db.Database
    # % if cookiecutter.__oidc
    oidc: NotRequired["oidc.AccessTokens | None"]  # None without an issuer; tests may have none
    # % endif
    shutdown: Shutdown
    # % if cookiecutter.__users
    passwords: passwords.Passwords
    # % endif
    count_requests: NotRequired[Count]  # for rate limits, which tests do not have
    record_key_use: NotRequired[key_uses.RecordUse]  # neither do they have work in the background
    transaction: NotRequired[AsyncSession]  # set and committed by `IdempotencyMiddleware`


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncGenerator[State]:
    async with AsyncExitStack() as stack:
        state = State(
            settings=settings,
            shutdown=Shutdown(),
            count_requests=MemoryCounters().count,
            # % if cookiecutter.__users
            passwords=passwords.Passwords(),
            # % endif
            database=await stack.enter_async_context(
                db.open_database(settings.database_url, pool_size=settings.DATABASE_POOL_SIZE)
            ),
            # % if cookiecutter.cache_backend != "none"
            cache=await stack.enter_async_context(cache.open_cache(settings)),
            # % endif
        )
        # % if cookiecutter.cache_backend in ["redis", "all"]
        if settings.CACHE_BACKEND_TYPE == "redis":
            state["count_requests"] = state["cache"].backend.count
        # % endif
        uses = key_uses.record_key_uses(state["database"])
        state["record_key_use"] = await stack.enter_async_context(uses)
        # % if cookiecutter.__queue
        tasks.load_actors()  # so that the relay knows all queues
        await stack.enter_async_context(tasks.open_relay(settings, tasks.broker))
        # % endif
        yield state


def build_lifespan(settings: Settings) -> Lifespan[FastAPI]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[State]:
        # SIGINT, because SHUTDOWN_DELAY_SECONDS would keep the port from the next server.
        end_with_parent(signal.SIGINT)
        async with AsyncExitStack() as stack:
            state = await stack.enter_async_context(open_resources(settings))
            # % if cookiecutter.__oidc
            state["oidc"] = await stack.enter_async_context(oidc.open_access_tokens(settings))
            # % endif
            # % if cookiecutter.scheduler
            if settings.SCHEDULER_ENABLED:
                from src.schedulers import scheduler  # noqa: PLC0415 - loaded if used

                jobs = scheduler.open_scheduler(settings, state["database"])
                await stack.enter_async_context(jobs)
            # % endif
            if not (settings.API_KEYS or settings.is_deployed):
                log.warning(
                    "api_unauthenticated",
                    reason="Without credentials, a caller has all scopes: see API_KEYS",
                )
            if settings.is_deployed and settings.public_pages:
                log.warning(
                    "pages_public",
                    pages=sorted(settings.public_pages),
                    reason="Anyone can read them: see DISABLED_PAGES and METRICS_PORT",
                )
            log.info(
                "api_started",
                env=settings.ENV,
                version=settings.VERSION,
                # % if cookiecutter.cache_backend != "none"
                cache=settings.CACHE_BACKEND_TYPE,
                # % endif
            )
            await stack.enter_async_context(open_metrics_server(settings))
            async with state["shutdown"].on_sigterm(settings.shutdown_delay):
                yield state
        log.info("api_stopped")

    return lifespan
