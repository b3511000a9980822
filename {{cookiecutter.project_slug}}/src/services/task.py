from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.task import Task
from src.domain.task import TaskNotFoundError
from src.repositories.task import TaskRepository


class TaskService:
    @staticmethod
    async def get_task(db: AsyncSession, task_id: UUID) -> Task:
        """Raises TaskNotFoundError."""
        return await TaskRepository(db).get_or_raise(task_id, TaskNotFoundError)
