"""Settings of e-mail that production refuses."""

import pytest

from src.core.config import load_settings
from tests.fixtures.environment import settings_error

SAFE = {
    "SMTP_HOST": "smtp.example.com",
    "SMTP_USER": "shop",
    "SMTP_PASSWORD": "secret",
    "MAIL_FROM": "Shop <shop@example.com>",
    "PUBLIC_URL": "https://www.example.com",
}
NAMES = ("SMTP", "MAIL", "PUBLIC_URL")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"SMTP_HOST": ""}, "SMTP_HOST must be set"),
        ({"MAIL_FROM": ""}, "MAIL_FROM must be set"),
        ({"PUBLIC_URL": ""}, "PUBLIC_URL must be the https:// URL"),
        ({"PUBLIC_URL": "http://www.example.com"}, "PUBLIC_URL must be the https:// URL"),
        ({"SMTP_USER": ""}, "SMTP_USER and SMTP_PASSWORD must be set together"),
        ({"SMTP_TLS": "none"}, "SMTP_TLS must be starttls or implicit"),
        ({"SMTP_TLS": "none", "SMTP_HOST": "localhost"}, ""),
        ({"SMTP_TLS": "none", "SMTP_USER": "", "SMTP_PASSWORD": ""}, ""),
        ({"SMTP_PORT": "tcp://10.0.0.7:587"}, ""),
    ],
)
def test_production_needs_a_server_and_a_sender(
    env: pytest.MonkeyPatch, changes: dict[str, str], words: str
) -> None:
    env.setenv("ENV", "production")
    for name, value in (SAFE | changes).items():
        env.setenv(name, value)

    error = settings_error()

    assert words in error
    assert words or not any(name in error for name in NAMES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAIL_FROM", "shop"),
        ("MAIL_FROM", "Shop <shop@example.com>, eve@example.com"),
        ("PUBLIC_URL", "www.example.com"),
        ("PUBLIC_URL", "https://www.example.com/?a=b"),
        ("PUBLIC_URL", "javascript://www.example.com"),
        ("SMTP_TLS", "yes"),
        ("SMTP_PORT", "0"),
    ],
)
def test_invalid_values_are_refused_everywhere(
    env: pytest.MonkeyPatch, name: str, value: str
) -> None:
    env.setenv(name, value)

    assert f"  {name}" in settings_error()


def test_the_url_has_no_slash_at_its_end(env: pytest.MonkeyPatch) -> None:
    env.setenv("PUBLIC_URL", "https://www.example.com/shop/")

    assert load_settings().PUBLIC_URL == "https://www.example.com/shop"
