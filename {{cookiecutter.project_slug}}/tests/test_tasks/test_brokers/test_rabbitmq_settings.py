import pytest

from src.core.config import InvalidSettingsError, load_settings


@pytest.mark.parametrize(
    ("value", "is_safe"),
    [
        ("amqp://guest:guest@localhost:5672", True),
        ("amqp://me:secret@queue", True),
        ("amqps://me:secret@queue:5671/lamps", True),
        ("amqp://guest:guest@queue", False),
        ("amqp://queue", False),
    ],
)
def test_production_wants_a_user_of_rabbitmq(
    production: pytest.MonkeyPatch, value: str, *, is_safe: bool
) -> None:
    production.setenv("DRAMATIQ_BROKER", "rabbitmq")
    production.setenv("RABBITMQ_URL", value)

    if is_safe:
        assert load_settings().is_deployed
    else:
        with pytest.raises(InvalidSettingsError, match="RABBITMQ_URL must name a user"):
            load_settings()


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "http://me:hunter2@h",
        "amqp://:hunter2@",
        "amqp://me:hunter2@h:port",
        "amqp://me:hunter2@h:0",
    ],
)
def test_bad_urls_are_named_but_not_shown(env: pytest.MonkeyPatch, text: str) -> None:
    env.setenv("RABBITMQ_URL", text)

    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()

    assert "  RABBITMQ_URL: " in str(caught.value)
    assert "hunter2" not in str(caught.value)
