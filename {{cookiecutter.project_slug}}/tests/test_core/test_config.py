from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from src.core import config
from src.core.config import InvalidSettingsError, Settings, load_settings

SAFE = {
    "ENV": "production",
    "POSTGRES_PASSWORD": "correct horse battery staple",
    "API_KEYS": "a-key-of-sixteen-characters",
}


@pytest.mark.usefixtures("env")
class TestSources:
    def test_defaults_are_for_development(self) -> None:
        settings = load_settings()

        assert (settings.ENV, settings.DEBUG, settings.API_PREFIX) == ("development", False, "/api")
        assert settings.names_database is False

    def test_environment_wins_over_dotenv_and_that_over_the_dev_server(
        self, env: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / ".data").mkdir()
        (tmp_path / ".data/dev.env").write_text("PORT=1\nHOST=one\nPOSTGRES_HOST=one\n")
        (tmp_path / ".env").write_text("PORT=2\nHOST=two\n")
        env.setenv("PORT", "3")

        settings = load_settings()

        assert (settings.PORT, settings.HOST, settings.POSTGRES_HOST) == (3, "two", "one")

    def test_another_file_may_be_named(self, env: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("PORT=1\nHOST=one\n")
        (tmp_path / ".env.prod").write_text("PORT=2\n")
        env.setenv("ENV_FILE", ".env.prod")

        assert (load_settings().PORT, load_settings().HOST) == (2, "127.0.0.1")

    def test_a_file_that_is_named_must_be_there(self, env: pytest.MonkeyPatch) -> None:
        env.setenv("ENV_FILE", ".env.typo")

        with pytest.raises(InvalidSettingsError, match="no such file"):
            load_settings()

    def test_secrets_may_come_from_files(self, env: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "POSTGRES_PASSWORD").write_text("from a file\n")
        env.setattr(config, "SECRETS_DIR", tmp_path)

        assert load_settings().database_url.password == "from a file"

    def test_empty_is_as_good_as_absent(self, env: pytest.MonkeyPatch) -> None:
        env.setenv("DATABASE_URL", "")
        env.setenv("PORT", "")

        assert (load_settings().DATABASE_URL, load_settings().PORT) == (None, 8000)

    def test_foreign_variables_in_dotenv_do_no_harm(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("COMPOSE_PROJECT_NAME=shop\n")

        assert load_settings().ENV == "development"


class TestValues:
    @pytest.mark.parametrize("text", ["https://a,https://b", ' ["https://a", "https://b"]'])
    def test_lists_are_json_or_comma_separated(self, env: pytest.MonkeyPatch, text: str) -> None:
        env.setenv("CORS_ORIGINS", text)

        assert load_settings().CORS_ORIGINS == ["https://a", "https://b"]

    @pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
    def test_any_url_of_a_provider_serves(self, env: pytest.MonkeyPatch, scheme: str) -> None:
        env.setenv("DATABASE_URL", f"{scheme}://me:s%40crt@db:6543/shop")

        url = load_settings().database_url

        assert url.drivername == "postgresql+asyncpg"
        assert (url.username, url.password, url.host) == ("me", "s@crt", "db")
        assert (url.port, url.database) == (6543, "shop")

    def test_encryption_as_providers_ask_for_it(self, env: pytest.MonkeyPatch) -> None:
        env.setenv("DATABASE_URL", "postgres://me@db/shop?sslmode=require&channel_binding=require")

        assert load_settings().database_url.query == {"ssl": "require"}

    def test_parts_may_hold_any_character(self, env: pytest.MonkeyPatch) -> None:
        env.setenv("POSTGRES_PASSWORD", "p@ss:w/rd%20")

        assert load_settings().database_url.password == "p@ss:w/rd%20"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("ENV", "prod"),
            ("PORT", "99999"),
            ("LOG_LEVEL", "loud"),
            ("API_PREFIX", "api"),
            ("API_PREFIX", "/api/"),
            ("DATABASE_URL", "hunter2"),
            ("DATABASE_URL", "mysql://me:hunter2@db/shop"),
            ("DATABASE_URL", "postgresql://me:pa@ss:hunter2@db/shop"),
            ("DATABASE_URL", "postgresql://me:hunter2@db/shop?sslcert=x"),
            ("DATABASE_URL", "postgresql://me:hunter2@db/shop?sslmode=bogus"),
            ("DATABASE_URL", "postgresql://me:hunter2@db/shop?port=abc"),
            ("CORS_ORIGINS", "[hunter2"),
        ],
    )
    def test_bad_values_are_named_but_not_shown(
        self, env: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        env.setenv(name, value)

        with pytest.raises(InvalidSettingsError) as caught:
            load_settings()

        assert f"  {name}: " in str(caught.value)
        assert "hunter2" not in str(caught.value)


class TestProduction:
    @pytest.mark.parametrize("name", ["production", "staging"])
    def test_every_fault_is_told_at_once(self, env: pytest.MonkeyPatch, name: str) -> None:
        env.setenv("ENV", name)
        env.setenv("DEBUG", "true")
        env.setenv("CORS_ORIGINS", "*")

        with pytest.raises(InvalidSettingsError) as caught:
            load_settings()

        message = str(caught.value)
        for fault in ("DEBUG", "POSTGRES_PASSWORD", "CORS_ORIGINS", "API_KEYS"):
            assert fault in message
        assert len(message.splitlines()) == 6

    def test_malformed_and_unsafe_are_told_together(self, env: pytest.MonkeyPatch) -> None:
        env.setenv("ENV", "production")
        env.setenv("PORT", "99999")
        env.setenv("DEBUG", "true")

        with pytest.raises(InvalidSettingsError) as caught:
            load_settings()

        for name in ("PORT", "DEBUG", "POSTGRES_PASSWORD", "API_KEYS"):
            assert name in str(caught.value)

    def test_a_malformed_url_is_no_missing_password(self, env: pytest.MonkeyPatch) -> None:
        for name, value in (SAFE | {"DATABASE_URL": "mysql://me:secret@db/shop"}).items():
            env.setenv(name, value)

        with pytest.raises(InvalidSettingsError) as caught:
            load_settings()

        assert "POSTGRES_PASSWORD" not in str(caught.value)

    def test_safe_settings_start(self, env: pytest.MonkeyPatch) -> None:
        for name, value in SAFE.items():
            env.setenv(name, value)

        assert load_settings().is_deployed

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("DATABASE_URL", "postgresql://me@db/shop"),
            ("DATABASE_URL", "postgresql://me:postgres@db/shop"),
            ("API_KEYS", "short"),
        ],
    )
    def test_one_fault_is_enough(self, env: pytest.MonkeyPatch, name: str, value: str) -> None:
        for safe, good in SAFE.items():
            env.setenv(safe, good)
        env.setenv(name, value)

        with pytest.raises(InvalidSettingsError):
            load_settings()

    def test_is_checked_however_settings_are_made(self) -> None:
        with pytest.raises(ValidationError, match="API_KEYS must hold"):
            Settings(ENV="production")


def test_secrets_are_not_shown() -> None:
    settings = Settings(
        ENV="test",
        DATABASE_URL=SecretStr("postgresql://me:hunter2@db/shop"),
        API_KEYS=[SecretStr("hunter2")],
        POSTGRES_PASSWORD=SecretStr("hunter2"),
    )

    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.database_url)
    assert "hunter2" not in settings.model_dump_json()
