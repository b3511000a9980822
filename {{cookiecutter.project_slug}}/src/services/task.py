from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.task import Task
from src.domain.task import TaskNotFoundError
from src.repositories.task import RedeliveryRepository, TaskRepository


class TaskService:
    @staticmethod
    async def get_task(db: AsyncSession, task_id: UUID) -> Task:
        """Raises TaskNotFoundError."""
        return await TaskRepository(db).get_or_raise(task_id, TaskNotFoundError)

    @staticmethod
    async def prune(db: AsyncSession, *, before: datetime, limit: int) -> int:
        """Delete tasks that ended before; return how many, `limit` at most."""
        await RedeliveryRepository(db).prune(before=before, limit=limit)
        return await TaskRepository(db).prune(before=before, limit=limit)
