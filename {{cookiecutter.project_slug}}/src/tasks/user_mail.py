"""The task that writes to users."""

from uuid import UUID

import dramatiq

from src.core.context import current_context
from src.domain.user import UserMail
from src.services.user_mail import send_user_mail


@dramatiq.actor(actor_name="send_mail_to_user", queue_name="mails", time_limit=180_000)
async def send_mail_to_user(mail: str, user_id: str) -> None:
    """Send a `UserMail`. A retry creates another token, which replaces the one before."""
    context = current_context()
    await send_user_mail(context.database, context.settings, UserMail(mail), UUID(user_id))
