"""Endpoints with cached responses for the notes of the tests; other endpoints change the notes."""

from uuid import UUID

from fastapi import APIRouter, FastAPI

from src.api.deps import DbReader, ReadSession
from src.api.response_cache import CachedRoute, cached_response
from tests.fixtures import notes
from tests.fixtures.notes import NoteResponse

CACHED_NOTES = "/cached-notes/"

router = APIRouter(prefix="/cached-notes", route_class=CachedRoute)


@router.get("/", dependencies=[cached_response(tags=["notes"])])
async def list_notes(db: ReadSession) -> list[NoteResponse]:
    return await notes.list_notes(db)


@router.get("/{note_id}", dependencies=[cached_response(tags=["note:{note_id}"])])
async def get_note(note_id: UUID, db: DbReader) -> NoteResponse:
    return await notes.get_note(note_id, db)


def add_cached_notes(app: FastAPI) -> None:
    app.include_router(router)


def cached_path(path: str) -> str:
    """Return the path of the cached response for a note."""
    return CACHED_NOTES + path.rpartition("/")[2]
