"""Delivers mails to the SMTP server. Development shows them instead."""

import asyncio
from email.headerregistry import AddressHeader
from email.message import EmailMessage
from typing import cast

import aiosmtplib
from aiosmtplib import (
    SMTPDataError,
    SMTPNotSupported,
    SMTPRecipientsRefused,
    SMTPResponseException,
)

from src.core.config import Settings
from src.mail import development
from src.mail.errors import MailError, MailRefusedError

STEP_SECONDS = 15  # the server's response to each command
DELIVERY_SECONDS = 60
_PERMANENT = 500  # the first code that means: do not send this again


async def deliver(settings: Settings, mail: EmailMessage) -> None:
    """Send the mail. Raises MailError or MailRefusedError.

    Without `SMTP_HOST`, show it in the terminal and write it to `.data/mail`.
    """
    if settings.SMTP_HOST is None:
        await asyncio.to_thread(development.show, mail)
        return
    try:
        async with asyncio.timeout(DELIVERY_SECONDS):
            await _send(settings, settings.SMTP_HOST, mail)
    except SMTPRecipientsRefused as error:
        raise _described(error, min(each.code for each in error.recipients)) from None
    except SMTPDataError as error:
        raise _described(error, error.code) from None
    except SMTPNotSupported as error:  # the address is not ASCII
        raise MailRefusedError(str(error)) from None
    except SMTPResponseException as error:  # its reason is the account or the sender
        raise MailError(f"{type(error).__name__}: code {error.code}") from None
    except (aiosmtplib.SMTPException, OSError) as error:  # OSError includes TLS and timeouts
        raise MailError(f"{type(error).__name__}: {error}") from None


async def _send(settings: Settings, host: str, mail: EmailMessage) -> None:
    [recipient] = cast(AddressHeader, mail["To"]).addresses
    async with server_of(settings, host) as server:
        await server.send_message(mail, recipients=[recipient.addr_spec])


def server_of(settings: Settings, host: str) -> aiosmtplib.SMTP:
    """Return the server. As a context manager, it connects and logs in."""
    password = settings.SMTP_PASSWORD
    return aiosmtplib.SMTP(
        hostname=host,
        port=settings.SMTP_PORT,  # None: the default of the TLS mode
        username=settings.SMTP_USER,
        password=password.get_secret_value() if password else None,
        use_tls=settings.SMTP_TLS == "implicit",
        start_tls=settings.SMTP_TLS == "starttls",
        timeout=STEP_SECONDS,
    )


def _described(error: Exception, code: int) -> MailError:
    kind = MailRefusedError if code >= _PERMANENT else MailError
    return kind(f"{type(error).__name__}: code {code}")
