import pytest

from src.core import broker_type
from src.core.config import InvalidSettingsError, load_settings


@pytest.mark.usefixtures("env")
def test_defaults_are_for_development() -> None:
    settings = load_settings()

    assert settings.DRAMATIQ_BROKER == broker_type.DEFAULT
    assert settings.DRAMATIQ_HEALTH_PORT is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DRAMATIQ_BROKER", "kafka"),
        ("DRAMATIQ_PROCESSES", "0"),
        ("DRAMATIQ_THREADS", "0"),
        ("DRAMATIQ_HEALTH_PORT", "65536"),
        ("TASK_HISTORY_DAYS", "0"),
    ],
)
def test_invalid_values_are_refused(env: pytest.MonkeyPatch, name: str, value: str) -> None:
    env.setenv(name, value)

    with pytest.raises(InvalidSettingsError, match=name):
        load_settings()
