"""The items API: an example of a complete resource."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response, status

from src.api import (
    openapi,
    # % if cookiecutter.cache_backend != "none"
    response_cache,
    # % endif
)
from src.api.auth import require
from src.api.deps import DbReader, DbSession, ExpectedVersions, ExpensiveReadSession
from src.db.models.item import Item
from src.domain.item import ItemArchivedError, ItemNotFoundError, ItemTransitionError
from src.domain.principal import Scope
from src.schemas.item import (
    ItemCreate,
    ItemListQuery,
    ItemMatches,
    ItemPage,
    ItemResponse,
    ItemSearchQuery,
    ItemUpdate,
)
from src.services.item import ItemService

ItemId = Annotated[UUID, Path(description="ID of the item.")]

router = APIRouter(
    prefix="/items",
    tags=["items"],
    dependencies=[require(Scope.ITEMS_READ)],
    # % if cookiecutter.cache_backend != "none"
    route_class=response_cache.CachedRoute,
    # % endif
)


@router.post(
    "/",
    response_model=ItemResponse,
    status_code=status.HTTP_201_CREATED,
    dependencies=[require(Scope.ITEMS_WRITE)],
)
async def create_item(
    item_data: ItemCreate, db: DbSession, request: Request, response: Response
) -> Item:
    """Create an item with the status `draft`.

    The header `Location` has the URL of the new item, and `ETag` has its version.
    """
    item = await ItemService.create_item(db, item_data)
    response.headers["Location"] = f"{request.url.path}{item.id}"
    response.headers["ETag"] = _etag(item)
    return item


@router.get(
    "/",
    # % if cookiecutter.cache_backend != "none"
    dependencies=[response_cache.cached_response(tags=["items"])],
    # % endif
)
async def list_items(query: Annotated[ItemListQuery, Query()], db: DbReader) -> ItemPage:
    """List items, newest first unless `sort` says otherwise.

    To get the next page, pass the `next_cursor` of the response as `cursor`. `offset` jumps to a
    page directly, but becomes slower with every page.
    """
    return await ItemService.list_items(db, query)


@router.get(
    "/search",
    # % if cookiecutter.cache_backend != "none"
    dependencies=[response_cache.cached_response(tags=["items"])],
    # % endif
)
async def search_items(
    query: Annotated[ItemSearchQuery, Query()], db: ExpensiveReadSession
) -> ItemMatches:
    """Search names and descriptions, best match first.

    An item matches if it contains every word of `q`. The last word also matches as a prefix, if it
    has at least two letters, which allows search-as-you-type. If more than 1,000 items match, only
    1,000 of them are ranked.
    """
    return await ItemService.search_items(db, query)


@router.get(
    "/{item_id}",
    # % if cookiecutter.cache_backend != "none"
    dependencies=[response_cache.cached_response(tags=["item:{item_id}"])],
    # % endif
    responses=openapi.problems(ItemNotFoundError),
)
async def get_item(item_id: ItemId, db: DbReader, response: Response) -> ItemResponse:
    """Return an item. To change exactly this version, send its `ETag` as `If-Match`."""
    item = await ItemService.get_item(db, item_id)
    response.headers["ETag"] = _etag(item)
    return item


@router.patch(
    "/{item_id}",
    response_model=ItemResponse,
    dependencies=[require(Scope.ITEMS_WRITE)],
    responses=openapi.problems(ItemNotFoundError, ItemArchivedError, ItemTransitionError),
)
async def update_item(
    item_id: ItemId,
    changes: ItemUpdate,
    db: DbSession,
    expected_versions: ExpectedVersions,
    response: Response,
) -> Item:
    """Change only the fields in the request.

    To avoid overwriting the change of another client, send the item's `ETag` as `If-Match`. If the
    item has changed since, the response is 412 and nothing changes.

    The status can only move forward, from `draft` to `active` to `archived`. An archived item
    cannot change.
    """
    item = await ItemService.update_item(db, item_id, changes, expected_versions)
    response.headers["ETag"] = _etag(item)
    return item


@router.delete(
    "/{item_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    dependencies=[require(Scope.ITEMS_WRITE)],
    responses=openapi.problems(ItemNotFoundError),
)
async def delete_item(item_id: ItemId, db: DbSession, expected_versions: ExpectedVersions) -> None:
    """Delete an item. If you send `If-Match`, the item must still have that version."""
    await ItemService.delete_item(db, item_id, expected_versions)


def _etag(item: Item | ItemResponse) -> str:
    return f'"{item.version}"'
