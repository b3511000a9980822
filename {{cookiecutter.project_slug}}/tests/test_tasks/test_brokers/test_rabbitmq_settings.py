import pytest

from tests.fixtures.environment import settings_error


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
    env: pytest.MonkeyPatch, value: str, words: str
) -> None:
    env.setenv("ENV", "production")
    env.setenv("DRAMATIQ_BROKER", "rabbitmq")
    for safe in ("amqp://guest:guest@localhost:5672", "amqps://me:secret@queue:5671/lamps"):
        env.setenv("RABBITMQ_URL", safe)
        assert words not in settings_error()
    env.setenv("RABBITMQ_URL", value)

    assert words in settings_error()
    assert "hunter2" not in settings_error()
