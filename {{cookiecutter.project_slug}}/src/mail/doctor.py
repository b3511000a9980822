"""A check of the SMTP server, for `python cli.py doctor`."""

from aiosmtplib import SMTPException, SMTPResponseException

from src.core.config import Settings
from src.doctor import CheckError
from src.mail.delivery import server_of


async def check_mail(settings: Settings) -> str | None:
    """Connect and log in. It sends nothing."""
    if settings.SMTP_HOST is None:
        return None
    try:
        async with server_of(settings, settings.SMTP_HOST) as server:
            return f"{server.hostname}:{server.port}"
    except SMTPResponseException as error:  # its text may repeat what was sent
        raise CheckError(f"{type(error).__name__}: code {error.code}") from error
    except (SMTPException, OSError) as error:
        raise CheckError(f"{type(error).__name__}: {error}") from error


CHECKS = {"mail": check_mail}
