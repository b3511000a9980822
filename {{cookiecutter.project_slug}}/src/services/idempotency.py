from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.idempotency import IdempotencyKey
from src.domain.idempotency import IdempotencyKeyInUseError, IdempotencyKeyReusedError
from src.repositories.idempotency import IdempotencyRepository

# How long a second request waits for the first, while it holds a connection.
LOCK_TIMEOUT_SECONDS = 5.0


class IdempotencyService:
    @staticmethod
    async def acquire(db: AsyncSession, key: bytes, fingerprint: bytes) -> IdempotencyKey | None:
        """Acquire the key for this transaction; if it was used before, return the stored response.

        Raises IdempotencyKeyInUseError or IdempotencyKeyReusedError.
        """
        repository = IdempotencyRepository(db)
        if await repository.acquire(key, fingerprint, lock_timeout=LOCK_TIMEOUT_SECONDS):
            return None
        stored = await repository.get(key)
        if stored is None or stored.status is None:  # just expired, or committed without a response
            raise IdempotencyKeyInUseError
        if stored.fingerprint != fingerprint:
            raise IdempotencyKeyReusedError
        return stored

    @staticmethod
    async def store_response(
        db: AsyncSession, key: bytes, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        await IdempotencyRepository(db).store_response(key, status, headers, body)
