import pytest

from src.core.config import InvalidSettingsError, load_settings


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("amqp://guest:guest@queue", "RABBITMQ_URL must have a user"),
        ("amqp://queue", "RABBITMQ_URL must have a user"),
        ("hunter2", "  RABBITMQ_URL: "),
        ("http://me:hunter2@h", "  RABBITMQ_URL: "),
        ("amqp://:hunter2@", "  RABBITMQ_URL: "),
        ("amqp://me:hunter2@h:port", "  RABBITMQ_URL: "),
        ("amqp://me:hunter2@h:0", "  RABBITMQ_URL: "),
    ],
)
def test_invalid_url_is_reported_without_its_password(
    production: pytest.MonkeyPatch, value: str, words: str
) -> None:
    production.setenv("DRAMATIQ_BROKER", "rabbitmq")
    for safe in ("amqp://guest:guest@localhost:5672", "amqps://me:secret@queue:5671/lamps"):
        production.setenv("RABBITMQ_URL", safe)
        assert load_settings().is_deployed
    production.setenv("RABBITMQ_URL", value)

    with pytest.raises(InvalidSettingsError, match=words) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
