"""Composes mails from templates."""

from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import default as policy
from email.utils import format_datetime, localtime, make_msgid
from functools import cache
from html import escape
from pathlib import Path
from string import Template

from src.core.config import Settings
from src.core.mail_settings import parse_address
from src.mail.errors import MailRefusedError

TEMPLATES = Path(__file__).parent / "templates"
# Lines as long as SMTP allows. By default, links would be broken into several lines.
_POLICY = policy.clone(max_line_length=990)


def compose(settings: Settings, name: str, *, to: str, **values: str) -> EmailMessage:
    """Fill in the templates with the name.

    Each `$word` of a template is one of `values`, or `$service`, the `PROJECT_NAME`. Raises
    MailRefusedError if the address is invalid.
    """
    values = {"service": settings.PROJECT_NAME, **values}
    escaped = {word: escape(value) for word, value in values.items()}
    subject, _, text = _read(f"{name}.txt").partition("\n")
    content = Template(_read(f"{name}.html")).substitute(escaped)
    page = Template(_read("layout.html")).substitute(escaped, content=content)

    sender = parse_address(settings.MAIL_FROM)
    mail = EmailMessage(_POLICY)
    # A line break in the subject would start another header. EmailMessage refuses it too.
    mail["Subject"] = " ".join(Template(subject).substitute(values).split())
    mail["From"] = sender
    mail["To"] = _without_name(to)
    mail["Date"] = format_datetime(localtime())
    mail["Message-ID"] = make_msgid(domain=sender.domain)
    mail["Auto-Submitted"] = "auto-generated"  # no absence notes in return (RFC 3834)
    mail.set_content(Template(text).substitute(values).strip() + "\n")
    mail.add_alternative(page, subtype="html")
    return mail


@cache
def _read(file: str) -> str:
    return (TEMPLATES / file).read_text(encoding="utf-8")


def _without_name(address: str) -> Address:
    try:
        return Address(addr_spec=parse_address(address).addr_spec)
    except ValueError:
        raise MailRefusedError("The address is invalid.") from None
