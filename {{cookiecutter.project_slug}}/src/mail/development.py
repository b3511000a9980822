"""Shows mails where no SMTP server is configured."""

import re
import sys
from datetime import UTC, datetime
from email.message import EmailMessage

import structlog

from src.core.config import ROOT

FOLDER = ROOT / ".data" / "mail"
_LINE = "-" * 80

log = structlog.get_logger(__name__)


def show(mail: EmailMessage) -> None:
    """Write the mail to a file, and its text to the terminal.

    The terminal gets it without the logger, which would mask the token in a link.
    """
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    subject = re.sub(r"[^a-z0-9]+", "-", str(mail["Subject"]).lower()).strip("-")
    path = FOLDER / f"{time}-{subject}.eml"
    body = mail.get_body(("plain",))
    text = body.get_content() if body else ""
    sys.stderr.write(
        f"{_LINE}\nMail to {mail['To']}: {mail['Subject']}\n\n{text}{_LINE}\n",
    )
    sys.stderr.flush()
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(mail))
    except OSError as error:  # a container's folder may be read-only
        log.warning("mail_not_written", cause=str(error))
