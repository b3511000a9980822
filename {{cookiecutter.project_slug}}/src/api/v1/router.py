"""Version 1 of the API: every resource's router is registered here."""

from fastapi import APIRouter

from src.api.openapi import problems
from src.api.v1.endpoints import (
    # % if cookiecutter.cache_backend != "none"
    cache,
    # % endif
    health,
    items,
    # % if cookiecutter.__scheduler
    scheduler,
    # % endif
)

router = APIRouter(responses=problems(422, 503))
router.include_router(health.router)
router.include_router(items.router)
# % if cookiecutter.cache_backend != "none"
router.include_router(cache.router)
# % endif
# % if cookiecutter.__scheduler
router.include_router(scheduler.router)
# % endif
