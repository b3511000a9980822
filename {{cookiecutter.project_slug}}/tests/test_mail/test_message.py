"""Templates become mails that no value can break out of."""

import re

import pytest

from src.core.config import Settings
from src.mail.errors import MailRefusedError
from src.mail.message import TEMPLATES, compose
from tests.fixtures.mail import parse, text_of

NAMES = sorted(path.stem for path in TEMPLATES.glob("*.txt"))
VALUES = {"link": "https://shop.example/x#token=abc", "token": "abc", "lifetime": "an hour"}


@pytest.mark.parametrize("name", NAMES)
def test_each_template_has_a_text_and_a_page(settings: Settings, name: str) -> None:
    mail = parse(bytes(compose(settings, name, to="ann@example.com", **VALUES)))

    text, page = text_of(mail), text_of(mail, "html")
    assert mail["Subject"]
    assert "$" not in mail["Subject"] + text + page
    assert (VALUES["link"] in text) == (f'href="{VALUES["link"]}"' in page)
    words = re.sub(r"<[^>]+>", " ", page).split()
    assert set(re.findall(r"[a-z]{5,}", text.split("http")[0])) <= set(
        re.findall(r"[a-z]{5,}", " ".join(words))
    )
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Message-ID"].endswith("@localhost>")


def test_links_are_not_broken_into_lines(settings: Settings) -> None:
    """So that they can be read in the file of a mail."""
    link = f"https://shop.example/reset-password#token={'a' * 200}"

    mail = compose(settings, "reset_password", to="ann@example.com", **VALUES | {"link": link})

    content = bytes(mail)

    assert f"\n{link}\n".encode() in content
    assert f'"{link}"'.encode() in content


def test_values_are_escaped_in_the_page(settings: Settings) -> None:
    settings = settings.model_copy(update={"PROJECT_NAME": "<b>Shop</b> & Sons"})

    mail = compose(settings, "password_changed", to="ann@example.com")

    assert mail["Subject"] == "Your password for <b>Shop</b> & Sons was changed"
    assert "&lt;b&gt;Shop&lt;/b&gt; &amp; Sons" in text_of(mail, "html")


def test_a_value_starts_no_header(settings: Settings) -> None:
    settings = settings.model_copy(update={"PROJECT_NAME": "Shop\r\nBcc: eve@example.com"})

    mail = parse(bytes(compose(settings, "password_changed", to="ann@example.com")))

    assert mail["Bcc"] is None
    assert "Bcc: eve@example.com" in mail["Subject"]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ann",
        "ann@example.com, eve@example.com",
        "ann@example.com\r\nBcc: eve@example.com",
        "ann@exa mple.com",
        "<ann@example.com> eve@example.com",
        f"ann@{'a' * 64}.com",
    ],
)
def test_an_invalid_address_is_refused(settings: Settings, address: str) -> None:
    with pytest.raises(MailRefusedError):
        compose(settings, "password_changed", to=address)


def test_the_domain_becomes_ascii(settings: Settings) -> None:
    mail = compose(settings, "password_changed", to="ann@bücher.example")

    assert mail["To"] == "ann@xn--bcher-kva.example"


def test_the_sender_may_have_a_name(settings: Settings) -> None:
    settings = settings.model_copy(update={"MAIL_FROM": "Müllers Shop <shop@example.com>"})

    mail = parse(bytes(compose(settings, "password_changed", to="ann@example.com")))

    assert mail["From"] == "Müllers Shop <shop@example.com>"


def test_a_template_that_misses_a_value_is_an_error(settings: Settings) -> None:
    with pytest.raises(KeyError, match="lifetime"):
        compose(settings, "reset_password", to="ann@example.com")
