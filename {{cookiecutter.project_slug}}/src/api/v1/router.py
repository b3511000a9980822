"""Version 1 of the API: every resource's router is registered here."""

from fastapi import APIRouter

from src.api.v1.endpoints import (
    # % if cookiecutter.cache_backend != "none"
    cache,
    # % endif
    health,
    # % if cookiecutter.__queue
    item_imports,
    # % endif
    items,
    # % if cookiecutter.scheduler
    scheduler,
    # % endif
    # % if cookiecutter.__queue
    tasks,
    # % endif
)

router = APIRouter()
router.include_router(health.router)
router.include_router(items.router)
# % if cookiecutter.__queue
router.include_router(item_imports.router)
router.include_router(tasks.router)
# % endif
# % if cookiecutter.cache_backend != "none"
router.include_router(cache.router)
# % endif
# % if cookiecutter.scheduler
router.include_router(scheduler.router)
# % endif
