"""Sends mails to users after the response, with several attempts in about a minute.

If all of them fail, or the process stops before, a mail is lost. The user can request another one.
"""

import asyncio
from typing import Annotated
from uuid import UUID

import structlog
from fastapi import BackgroundTasks, Depends
from sqlalchemy.ext.asyncio import AsyncSession

from src.api.deps import AppDatabase, AppSettings
from src.core.config import Settings
from src.db import Database, DatabaseUnavailableError
from src.domain.user import UserMail
from src.mail.errors import MailError
from src.services.user_mail import SendMail, send_user_mail

PAUSES = (2, 10, 60)  # seconds between attempts

log = structlog.get_logger(__name__)


async def get_mails(
    background: BackgroundTasks, database: AppDatabase, settings: AppSettings
) -> SendMail:
    async def send(_: AsyncSession, mail: UserMail, user_id: UUID) -> None:
        background.add_task(send_after_response, database, settings, mail, user_id)

    return send


AppMails = Annotated[SendMail, Depends(get_mails)]


async def send_after_response(
    database: Database, settings: Settings, mail: UserMail, user_id: UUID
) -> None:
    lost: str | None = "the process stops"  # which cancels this
    try:
        await _send(database, settings, mail, user_id)
        lost = None
    except (MailError, DatabaseUnavailableError) as error:
        lost = str(error)
    finally:
        if lost is not None:
            log.error("mail_lost", mail=mail.value, user=str(user_id), cause=lost)


async def _send(database: Database, settings: Settings, mail: UserMail, user_id: UUID) -> None:
    for pause in PAUSES:
        try:
            return await send_user_mail(database, settings, mail, user_id)
        except (MailError, DatabaseUnavailableError) as error:
            log.warning("mail_postponed", mail=mail.value, user=str(user_id), cause=str(error))
        await asyncio.sleep(pause)
    return await send_user_mail(database, settings, mail, user_id)
