"""Sends mails to users as tasks, once the transaction has committed.

No mail is lost: after the last attempt, it is a dead letter.
"""

from typing import Annotated
from uuid import UUID

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from src.domain.user import UserMail
from src.services.user_mail import SendMail
from src.tasks import enqueue
from src.tasks.user_mail import send_mail_to_user


async def _enqueue(db: AsyncSession, mail: UserMail, user_id: UUID) -> None:
    await enqueue(db, send_mail_to_user, mail.value, str(user_id))


async def get_mails() -> SendMail:
    return _enqueue


AppMails = Annotated[SendMail, Depends(get_mails)]
