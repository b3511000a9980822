"""Version 1 of the API. Register the router of each resource here."""

from fastapi import APIRouter

from src.api.v1.endpoints import (
    # % if cookiecutter.cache_backend != "none"
    cache,
    # % endif
    health,
    # % if cookiecutter.example and cookiecutter.__queue
    item_imports,
    # % endif
    # % if cookiecutter.example
    items,
    # % endif
    # % if cookiecutter.__users
    one_time_tokens,
    # % endif
    # % if cookiecutter.scheduler
    scheduler,
    # % endif
    # % if cookiecutter.__users
    sessions,
    # % endif
    # % if cookiecutter.__queue
    tasks,
    # % endif
    # % if cookiecutter.__users
    users,
    # % endif
)

router = APIRouter()
router.include_router(health.router)
# % if cookiecutter.__users
router.include_router(sessions.router)
router.include_router(users.router)
router.include_router(one_time_tokens.router)
# % endif
# % if cookiecutter.example
router.include_router(items.router)
# % endif
# % if cookiecutter.example and cookiecutter.__queue
router.include_router(item_imports.router)
# % endif
# % if cookiecutter.__queue
router.include_router(tasks.router)
# % endif
# % if cookiecutter.cache_backend != "none"
router.include_router(cache.router)
# % endif
# % if cookiecutter.scheduler
router.include_router(scheduler.router)
# % endif
