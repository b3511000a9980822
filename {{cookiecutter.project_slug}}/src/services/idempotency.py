from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.idempotency import IdempotencyKey
from src.domain.idempotency import IdempotencyKeyInUseError, IdempotencyKeyReusedError
from src.repositories.idempotency import IdempotencyRepository

# How long the second of two waits for the first, with a connection in hand.
PATIENCE_SECONDS = 5.0


class IdempotencyService:
    @staticmethod
    async def begin(db: AsyncSession, key: bytes, fingerprint: bytes) -> IdempotencyKey | None:
        """Take the key for this transaction; if it was used before, return what it was used for.

        Raises IdempotencyKeyInUseError or IdempotencyKeyReusedError.
        """
        repository = IdempotencyRepository(db)
        if await repository.take(key, fingerprint, patience=PATIENCE_SECONDS):
            return None
        kept = await repository.get(key)
        if kept is None or kept.status is None:  # expired just now, or committed half-way
            raise IdempotencyKeyInUseError
        if kept.fingerprint != fingerprint:
            raise IdempotencyKeyReusedError
        return kept

    @staticmethod
    async def keep(
        db: AsyncSession, key: bytes, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        """Keep the response beside the work, for whoever sends the request again."""
        await IdempotencyRepository(db).keep(key, status, headers, body)
