import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from secrets import token_hex, token_urlsafe
from uuid import uuid4

import pytest
from pydantic import SecretStr, ValidationError

from src.core import config
from src.core.config import InvalidSettingsError, Settings, load_settings
from tests.fixtures.environment import settings_error


@pytest.mark.usefixtures("env")
class TestSources:
    def test_defaults_are_for_development_and_empty_values_are_ignored(
        self, env: pytest.MonkeyPatch
    ) -> None:
        env.setenv("DATABASE_URL", "")
        env.setenv("PORT", "")
        settings = load_settings()

        assert settings.ENV == "development"
        assert Settings.model_fields["PORT"].default == settings.PORT
        assert not settings.is_set("DATABASE_URL", "POSTGRES_HOST")

    def test_environment_overrides_dotenv_and_dotenv_the_dev_server(
        self, env: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / ".data").mkdir()
        (tmp_path / ".data/dev.env").write_text("PORT=1\nHOST=one\nPOSTGRES_HOST=one\n")
        (tmp_path / ".env").write_text("PORT=2\nHOST=two\nCOMPOSE_PROJECT_NAME=ignored\n")
        env.setenv("PORT", "3")

        settings = load_settings()

        assert (settings.PORT, settings.HOST, settings.POSTGRES_HOST) == (3, "two", "one")

    def test_env_file_names_another_file_that_must_exist(
        self, env: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / ".env").write_text("PORT=1\nHOST=one\n")
        (tmp_path / ".env.prod").write_text("PORT=2\n")
        env.setenv("ENV_FILE", ".env.prod")

        assert (load_settings().PORT, load_settings().is_set("HOST")) == (2, False)
        env.setenv("ENV_FILE", ".env.typo")
        with pytest.raises(InvalidSettingsError, match="does not exist"):
            load_settings()

    def test_secrets_may_come_from_files(self, env: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "POSTGRES_PASSWORD").write_text("p@ss:w/rd%20 from a file\n")
        env.setattr(config, "SECRETS_DIR", tmp_path)

        assert load_settings().database_url.password == "p@ss:w/rd%20 from a file"


class TestValues:
    @pytest.mark.parametrize(
        "text",
        [
            "https://a,https://b",
            ' ["https://a", "https://b"]',
            """'["https://a", "https://b"]'""",
            "\"https://a\" , 'https://b'",
            "'https://a,https://b'",
        ],
    )
    def test_lists_are_json_or_comma_separated(self, env: pytest.MonkeyPatch, text: str) -> None:
        env.setenv("CORS_ORIGINS", text)

        assert load_settings().CORS_ORIGINS == ["https://a", "https://b"]

    @pytest.mark.parametrize("value", [' "81"\r\n', "'81'", "\t81 "])
    def test_quotes_and_white_space_around_a_value_are_removed(
        self, env: pytest.MonkeyPatch, value: str
    ) -> None:
        """Docker's `--env-file` passes quotes on, and mounted secrets often end with a newline."""
        env.setenv("PORT", value)
        env.setenv("POSTGRES_PASSWORD", """it's "quoted" inside\n""")
        env.setenv("CORS_ORIGINS", '["https://a"]')
        env.setenv("DATABASE_POOL_SIZE", " ")

        settings = load_settings()

        assert settings.PORT == 81
        assert settings.database_url.password == """it's "quoted" inside"""
        assert settings.CORS_ORIGINS == ["https://a"]
        assert settings.DATABASE_POOL_SIZE == 20

    @pytest.mark.parametrize(
        ("text", "origin"),
        [
            ("https://shop.example/", "https://shop.example"),
            ("HTTPS://Shop.Example:443", "https://shop.example"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://[::1]:80", "http://[::1]"),
            ("https://*.shop.example", "https://*.shop.example"),
            ("https://müller.example", "https://xn--mller-kva.example"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("https://a,https://A/", "https://a"),
            ("*", "*"),
        ],
    )
    def test_origins_are_normalized(self, env: pytest.MonkeyPatch, text: str, origin: str) -> None:
        env.setenv("CORS_ORIGINS", text)
        origins = load_settings().CORS_ORIGINS

        assert origins == [origin]

    @pytest.mark.parametrize(
        "text",
        [
            *("shop.example", "localhost:3000", "*.shop.example", "https://shop.*", "null"),
            *("http://localhost:*", "https://a https://b", "https://shop.example/app"),
            *("https://me:hunter2@shop.example", "https://*.com", "*,https://shop.example"),
        ],
    )
    def test_origins_that_match_no_page_are_refused(
        self, env: pytest.MonkeyPatch, text: str
    ) -> None:
        env.setenv("CORS_ORIGINS", text)

        assert re.search("  CORS_ORIGINS: .*(Write a scheme|Use it alone)", settings_error())
        assert "hunter2" not in settings_error()

    def test_env_files_of_windows_editors(self, env: pytest.MonkeyPatch, tmp_path: Path) -> None:
        env.setenv("DEBUG", "true\r")
        (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfPORT=81\r\nHOST='0.0.0.0'\r\n")
        assert (load_settings().PORT, load_settings().HOST) == (81, "0.0.0.0")  # noqa: S104 - a text

        (tmp_path / ".env").write_bytes("PORT=81".encode("utf-16"))
        with pytest.raises(InvalidSettingsError, match="Save it as UTF-8"):
            load_settings()

    def test_service_links_of_kubernetes_are_ignored(self, env: pytest.MonkeyPatch) -> None:
        env.setenv("POSTGRES_PORT", "tcp://10.0.0.7:5432")

        assert not load_settings().is_set("POSTGRES_PORT")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("ENV", "prod"),
            ("PORT", "99999"),
            ("LOG_LEVEL", "loud"),
            ("API_PREFIX", "/api/"),
            ("DATABASE_URL", "hunter2"),
            ("DATABASE_URL", "mysql://me:hunter2@db/shop"),
            ("DATABASE_URL", "postgresql://me:pa@ss:hunter2@db/shop"),
            ("DATABASE_URL", "postgresql://me:pa@hunter2@db/shop"),
            ("DATABASE_URL", "postgresql://me:hunter2@db/shop?schema=x"),
            ("DATABASE_URL", "postgresql://me:hunter2@db/shop?sslmode=bogus"),
            ("DATABASE_URL", "postgresql://me:hunter2@db/shop?port=abc"),
            ("CORS_ORIGINS", "[hunter2"),
            ("MAX_BODY_SIZE", "-1MB"),
        ],
    )
    def test_errors_name_the_setting_but_do_not_show_the_value(
        self, env: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        env.setenv(name, value)

        with pytest.raises(InvalidSettingsError) as caught:
            load_settings()

        assert f"  {name}: " in str(caught.value)
        assert "hunter2" not in str(caught.value)


class TestProduction:
    @pytest.mark.parametrize("name", ["production", "staging"])
    def test_all_unsafe_values_are_listed_together(
        self, env: pytest.MonkeyPatch, name: str
    ) -> None:
        env.setenv("ENV", name)
        env.setenv("DEBUG", "true")
        env.setenv("CORS_ORIGINS", "*")

        with pytest.raises(InvalidSettingsError) as caught:
            load_settings()

        message = str(caught.value)
        for unsafe in ("DEBUG", "POSTGRES_PASSWORD", "CORS_ORIGINS"):
            assert unsafe in message
        assert "API_KEYS" not in message  # the database may have keys

    @pytest.mark.parametrize(
        ("name", "safe", "unsafe", "error"),
        [
            ("DATABASE_URL", "postgresql://me:s@db/a", "postgresql://me@db/a", "POSTGRES_PASSWORD"),
            ("POSTGRES_PASSWORD", "secret", "postgres", "POSTGRES_PASSWORD"),
            ("API_KEYS", "a-key-of-sixteen-characters", "short", "API_KEYS"),
            ("API_KEYS", "8f14e45fceea167a5a36dedd4bea2543", "a" * 16, "API_KEYS must be random"),
            ("API_KEYS", "8f14e45fceea167a", "Change-me-0123456789", "API_KEYS must be random"),
            ("DATABASE_URL", "postgresql://db/a?sslmode=require", "postgresql://db/a", "SSLMODE"),
            ("DATABASE_URL", "postgresql:///a?host=/tmp", "postgresql://localhost,db/a", "SSLMODE"),
            ("POSTGRES_HOST", "localhost", "10.0.0.7", "SSLMODE"),
            ("FORWARDED_ALLOW_IPS", "10.0.0.0/8", "*", "FORWARDED_ALLOW_IPS"),
        ],
    )
    def test_one_unsafe_value_is_enough(
        self, env: pytest.MonkeyPatch, name: str, safe: str, unsafe: str, error: str
    ) -> None:
        env.setenv("ENV", "production")
        env.setenv(name, safe)
        assert error not in settings_error()
        env.setenv(name, unsafe)
        assert error in settings_error()

    @pytest.mark.parametrize(
        "key",
        [
            *("1234567890123456", "20261129134500123", "0123456789abcdef0123456789abcdef"),
            *("qwertyuiopasdfgh", "1q2w3e4r5t6y7u8i", "sunshine-sunshine", "Pass-word-8f14e45fcee"),
            *("abcabcabcabcabcabc", "zyxwvutsrqponmlk", "aaaabbbbccccddddeeeeffff"),
        ],
    )
    def test_a_key_is_not_made_of_words_or_sequences(
        self, env: pytest.MonkeyPatch, key: str
    ) -> None:
        env.setenv("ENV", "production")
        env.setenv("API_KEYS", key)

        assert "API_KEYS must be random" in settings_error()

    @pytest.mark.parametrize("make", [token_urlsafe, partial(token_hex, 16), uuid4])
    def test_random_keys_are_accepted(
        self, env: pytest.MonkeyPatch, make: Callable[[], object]
    ) -> None:
        env.setenv("ENV", "production")
        env.setenv("API_KEYS", ",".join(str(make()) for _ in range(200)))

        assert "API_KEYS" not in settings_error()

    @pytest.mark.parametrize(
        ("proxies", "is_safe"),
        [
            ("10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7,127.0.0.1,/run/proxy.sock", True),
            ("104.16.0.0/13,172.64.0.0/13,2400:cb00::/32,2a06:98c0::/29", True),
            ("10.0.0.7,::/0", False),
            ("0.0.0.0/1", False),
            (",".join(f"{number}.0.0.0/4" for number in range(0, 256, 16)), False),
            ("0.0.0.0/0.0.0.0", False),
            ("10.0.0.0/7", False),
            ("2000::/3", False),
            ("::ffff:0.0.0.0/97", False),
            ("::/80", False),
            ("::ffff:10.0.0.0/104,::1", True),
        ],
    )
    def test_proxies_are_not_the_whole_internet(
        self, env: pytest.MonkeyPatch, proxies: str, *, is_safe: bool
    ) -> None:
        env.setenv("ENV", "production")
        env.setenv("FORWARDED_ALLOW_IPS", proxies)

        assert ("FORWARDED_ALLOW_IPS" not in settings_error()) == is_safe

    def test_a_certificate_may_replace_the_password(self, env: pytest.MonkeyPatch) -> None:
        env.setenv("ENV", "production")
        options = "sslmode=verify-full&sslrootcert=/ca.pem&sslcert=/c.pem"
        env.setenv("DATABASE_URL", f"postgresql://me@db/shop?{options}")
        assert "DATABASE_URL" not in settings_error()

    def test_an_unencrypted_connection_can_be_selected(self, env: pytest.MonkeyPatch) -> None:
        env.setenv("ENV", "production")
        env.setenv("POSTGRES_HOST", "db")
        env.setenv("POSTGRES_SSLMODE", "disable")
        assert "SSLMODE" not in settings_error()

    def test_applies_to_settings_made_in_code(self) -> None:
        with pytest.raises(ValidationError, match="POSTGRES_PASSWORD"):
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
