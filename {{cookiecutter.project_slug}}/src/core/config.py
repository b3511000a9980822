"""Settings, read from environment variables and `.env`.

An environment variable overrides the same name in `.env`; an option of `cli.py` overrides both.
`.env.example` describes every setting.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError
from sqlalchemy import URL

from src.core import (
    # % if cookiecutter.__queue
    broker_type,
    # % endif
    # % if cookiecutter.cache_backend != "none"
    cache_type,
    # % endif
    # % if cookiecutter.__users
    mail_settings,
    # % endif
    # % if cookiecutter.__oidc
    oidc_settings,
    # % endif
    origins,
    postgres_url,
    # % if cookiecutter.__queue_rabbitmq
    rabbitmq_url,
    # % endif
    # % if cookiecutter.__redis
    redis_url,
    # % endif
    # % if cookiecutter.scheduler
    time_zone,
    # % endif
    unsafe,
)
from src.core.rate_limits import Rate

ROOT = Path(__file__).resolve().parents[2]
_MANIFEST = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
_PROJECT = _MANIFEST["project"]

# `cli.py dev` writes the URLs of its servers here, so that commands in other terminals find them.
DEV_ENV_FILE = ROOT / ".data" / "dev.env"
# Docker and Kubernetes mount secrets here, one file per setting, with its name.
SECRETS_DIR = Path("/run/secrets")

_DEFAULT_PASSWORD = "postgres"  # noqa: S105 - the default that production refuses
_SHORTEST_API_KEY = 16


def _split(value: object) -> object:
    """Parse `a,b`, or the JSON list `["a", "b"]`."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return [_clean(part) for part in value.split(",") if part.strip()]
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError('must be a list like a,b or the JSON list ["a", "b"]') from None


def _clean(value: object) -> object:
    """Remove what `--env-file`, mounted secrets and editors leave around a value."""
    if not isinstance(value, str):
        return value
    value = value.strip()
    quote, inner = value[:1], value[1:-1]
    if quote in {'"', "'"} and value == quote + inner + quote and quote not in inner:
        return inner
    return value


def _upper(level: str) -> str:
    """Without this function, the start takes 40 ms to find the parameters of `str.upper`."""
    return level.upper()


def _checked_by(parse: Callable[[str], object]) -> AfterValidator:
    def check(secret: SecretStr) -> SecretStr:
        parse(secret.get_secret_value())
        return secret

    return AfterValidator(check)


Port = Annotated[int, Field(ge=0, le=65535)]
# A prefix of keys, and the name of a folder.
Namespace = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Page = Literal["app-info", "docs", "metrics"]


class InvalidSettingsError(SystemExit):
    """The settings are invalid or unsafe.

    As a `SystemExit` it ends the process with the message and status 1, without a traceback. The
    message has one line for each error.
    """


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_ignore_empty=True,
        env_file_encoding="utf-8-sig",  # Windows editors write a byte order mark
        extra="ignore",
        frozen=True,
        # The input of a validation error may be a secret.
        hide_input_in_errors=True,
    )

    ENV: Literal["development", "test", "staging", "production"] = "development"
    DEBUG: bool = False
    LOG_LEVEL: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)
    ] = "INFO"

    PROJECT_NAME: str = _MANIFEST["tool"]["service"]["title"]
    PROJECT_DESCRIPTION: str = _PROJECT["description"]
    VERSION: str = _PROJECT["version"]

    API_PREFIX: str = Field(default="/api", pattern=r"^(/[A-Za-z0-9_.~-]+)+$")
    HOST: str = "127.0.0.1"
    PORT: Port = 8000
    CORS_ORIGINS: Annotated[
        list[str], NoDecode, BeforeValidator(_split), AfterValidator(origins.normalize)
    ] = []
    API_KEYS: Annotated[list[SecretStr], NoDecode, BeforeValidator(_split)] = []
    DISABLED_PAGES: Annotated[list[Page], NoDecode, BeforeValidator(_split)] = []
    METRICS_PORT: Port | None = None
    HSTS_SECONDS: int | None = Field(default=None, ge=0)
    MAX_BODY_SIZE: Annotated[ByteSize, Field(ge=1)] = ByteSize(1024 * 1024)
    RATE_LIMIT: Annotated[str, AfterValidator(lambda rate: Rate.parse(rate).text)] | None = None
    SHUTDOWN_DELAY_SECONDS: float | None = Field(default=None, ge=0)

    POSTGRES_HOST: str = "localhost"
    POSTGRES_PORT: Port = Field(default=5432, ge=1)
    POSTGRES_USER: str = "postgres"
    POSTGRES_PASSWORD: SecretStr = SecretStr(_DEFAULT_PASSWORD)
    POSTGRES_DB: str = "app"
    POSTGRES_SSLMODE: postgres_url.SSLMode | None = None
    DATABASE_URL: Annotated[SecretStr, _checked_by(postgres_url.parse)] | None = None
    DATABASE_POOL_SIZE: int = Field(default=20, ge=1)
    DATABASE_POOLER: bool = False
    DATABASE_LOCK_TIMEOUT_SECONDS: float = Field(default=3, ge=0)
    DATABASE_IDLE_TRANSACTION_SECONDS: float = Field(default=30, ge=0)

    # % if cookiecutter.__oidc
    OIDC_ISSUER: Annotated[str, AfterValidator(oidc_settings.check_issuer)] | None = None
    OIDC_AUDIENCE: Annotated[list[str], NoDecode, BeforeValidator(_split)] = []
    OIDC_SCOPES_CLAIM: Annotated[list[str], NoDecode, BeforeValidator(_split)] = ["scope"]
    OIDC_SCOPES_MAP: Annotated[
        dict[str, str], NoDecode, BeforeValidator(oidc_settings.parse_scopes_map)
    ] = {}
    OIDC_CLIENT_ID: str | None = None
    OIDC_LOGIN_SCOPES: Annotated[list[str], NoDecode, BeforeValidator(_split)] = ["openid"]

    # % endif
    # % if cookiecutter.__redis
    REDIS_HOST: str = "localhost"
    REDIS_PORT: Port = Field(default=6379, ge=1)
    REDIS_PASSWORD: SecretStr | None = None
    REDIS_DB: int = Field(default=0, ge=0)
    REDIS_URL: Annotated[SecretStr, _checked_by(redis_url.parse)] | None = None

    # % endif
    # % if cookiecutter.cache_backend in ["redis", "file", "all"]
    CACHE_NAMESPACE: Namespace | None = None
    # % endif
    # % if cookiecutter.cache_backend != "none"
    CACHE_BACKEND_TYPE: cache_type.CacheType = cache_type.DEFAULT
    CACHE_TTL_SECONDS: int = Field(default=300, ge=1)
    CACHE_MEMORY_MAX_MEGABYTES: int = Field(default=64, ge=1)

    # % endif
    # % if cookiecutter.cache_backend in ["file", "all"]
    CACHE_FILE_PATH: Path = Path("cache")
    CACHE_FILE_MAX_MEGABYTES: int = Field(default=256, ge=1)

    # % endif
    # % if cookiecutter.__queue_redis
    DRAMATIQ_REDIS_URL: Annotated[SecretStr, _checked_by(redis_url.parse)] | None = None
    # % endif
    # % if cookiecutter.__queue_rabbitmq
    RABBITMQ_URL: Annotated[SecretStr, _checked_by(rabbitmq_url.check)] = SecretStr(
        rabbitmq_url.DEFAULT
    )
    # % endif
    # % if cookiecutter.__queue
    DRAMATIQ_BROKER: broker_type.BrokerType = broker_type.DEFAULT
    DRAMATIQ_NAMESPACE: Namespace | None = None
    DRAMATIQ_PROCESSES: int = Field(default=2, ge=1)
    DRAMATIQ_THREADS: int = Field(default=8, ge=1)
    DRAMATIQ_HEALTH_PORT: Port | None = None
    TASK_HISTORY_DAYS: int = Field(default=30, ge=1)

    # % endif
    # % if cookiecutter.scheduler
    SCHEDULER_ENABLED: bool = True
    SCHEDULER_HISTORY_DAYS: int = Field(default=30, ge=1)
    SCHEDULER_TIMEZONE: time_zone.TimeZone = time_zone.UTC

    # % endif
    # % if cookiecutter.__users
    SIGN_UP_ENABLED: bool = True
    SMTP_HOST: str | None = None
    SMTP_PORT: Annotated[Port, Field(ge=1)] | None = None
    SMTP_USER: str | None = None
    SMTP_PASSWORD: SecretStr | None = None
    SMTP_TLS: mail_settings.TLSMode = "starttls"
    MAIL_FROM: Annotated[str, AfterValidator(mail_settings.check_address)] = "no-reply@localhost"
    PUBLIC_URL: Annotated[str, AfterValidator(mail_settings.check_url)] = "http://localhost:3000"

    # % endif
    # % if cookiecutter.example and cookiecutter.scheduler
    ITEMS_STALE_AFTER_DAYS: int = Field(default=365, ge=1)

    # % endif
    @model_validator(mode="before")
    @classmethod
    def _clean_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = {name: _clean(value) for name, value in values.items()}
        return {
            name: value
            for name, value in values.items()
            # Kubernetes sets POSTGRES_PORT=tcp://10.0.0.7:5432 for a service named `postgres`.
            if value != "" and not (name.endswith("_PORT") and str(value).startswith("tcp://"))
        }

    # % if cookiecutter.__queue_redis
    @model_validator(mode="after")
    def _refuse_cluster(self) -> Self:
        if self.queue_redis_url.kind == "cluster" and self.DRAMATIQ_BROKER == "redis":
            raise ValueError("DRAMATIQ_REDIS_URL: the task queue does not support Redis Cluster")
        return self

    # % endif
    @model_validator(mode="after")
    def _refuse_unsafe(self) -> Self:
        if self.is_deployed and (errors := list(self._production_errors())):
            raise ValueError("\n  ".join([f"Unsafe with ENV={self.ENV}:", *errors]))
        return self

    def _production_errors(self) -> Iterator[str]:
        if self.DEBUG:
            yield "DEBUG must be false"
        url = self.database_url
        if not postgres_url.has_credentials(url) or url.password == _DEFAULT_PASSWORD:
            yield "POSTGRES_PASSWORD, or the password in DATABASE_URL, must not be empty or the default"
        # % if cookiecutter.cache_backend in ["redis", "all"]
        if self.CACHE_BACKEND_TYPE == "redis" and not self.redis_url.is_protected:
            yield "REDIS_PASSWORD must be set unless Redis runs on this machine"
        # % endif
        # % if cookiecutter.__queue_redis
        if not self.queue_redis_url.is_protected and self.DRAMATIQ_BROKER == "redis":
            yield "DRAMATIQ_REDIS_URL must have a password unless Redis runs on this machine"
        # % endif
        # % if cookiecutter.__queue_rabbitmq
        rabbitmq = self.RABBITMQ_URL.get_secret_value()
        if not rabbitmq_url.is_protected(rabbitmq) and self.DRAMATIQ_BROKER == "rabbitmq":
            yield "RABBITMQ_URL must have a user and a password that is not the default"
        # % endif
        if not postgres_url.selects_encryption(url):
            yield (
                "POSTGRES_SSLMODE, or sslmode in DATABASE_URL, must be verify-full or require for a"
                " database on another machine; or disable, if you trust the network"
            )
        if "*" in self.CORS_ORIGINS:
            yield "CORS_ORIGINS must list the allowed origins instead of '*'"
        if unsafe.trusts_everyone(os.environ.get("FORWARDED_ALLOW_IPS", "")):  # uvicorn reads it
            yield (
                "FORWARDED_ALLOW_IPS must list the addresses of your proxies instead of '*', or of"
                " networks that contain much of the internet"
            )
        # % if cookiecutter.__users
        yield from mail_settings.production_errors(self)
        # % endif
        # % if cookiecutter.__oidc
        yield from oidc_settings.production_errors(self)
        # % endif
        yield from self._api_key_errors()

    def _api_key_errors(self) -> Iterator[str]:
        if any(len(key.get_secret_value()) < _SHORTEST_API_KEY for key in self.API_KEYS):
            yield f"Each key in API_KEYS must have at least {_SHORTEST_API_KEY} characters"
        elif any(unsafe.is_guessable(key.get_secret_value()) for key in self.API_KEYS):
            yield "Each key in API_KEYS must be random, such as the output of `openssl rand -hex 32`"

    @property
    def is_deployed(self) -> bool:
        """Whether the process refuses to start with unsafe settings."""
        return self.ENV in {"staging", "production"}

    @property
    def public_pages(self) -> set[Page]:
        """The pages on the port of the API that need no key."""
        pages = set(get_args(Page)).difference(self.DISABLED_PAGES)
        return pages if self.METRICS_PORT is None else pages - {"metrics"}

    @property
    def shutdown_delay(self) -> float:
        """`SHUTDOWN_DELAY_SECONDS`. By default, development does not wait for a proxy."""
        default = 10 if self.is_deployed else 0
        return default if self.SHUTDOWN_DELAY_SECONDS is None else self.SHUTDOWN_DELAY_SECONDS

    def is_set(self, *names: str) -> bool:
        """Whether any of these settings has a value in the environment or in a file."""
        return not self.model_fields_set.isdisjoint(names)

    @property
    def namespace(self) -> str:
        """Separates this service and ENV from others. Add what you store: `f"{namespace}.cache"`."""
        return f"{_PROJECT['name']}.{self.ENV}"

    @property
    def api_key_prefix(self) -> str:
        """The start of each API key, by which secret scanners find them."""
        return re.sub("[^a-z0-9]", "", _PROJECT["name"].lower())

    # % if cookiecutter.cache_backend in ["redis", "file", "all"]
    @property
    def cache_namespace(self) -> str:
        """`CACHE_NAMESPACE`, or the cache's part of `namespace`."""
        return self.CACHE_NAMESPACE or f"{self.namespace}.cache"

    # % endif
    # % if cookiecutter.__queue_redis
    @cached_property
    def queue_redis_url(self) -> redis_url.RedisURL:
        """`DRAMATIQ_REDIS_URL`, or `redis_url` if it is not set."""
        if self.DRAMATIQ_REDIS_URL is None:
            return self.redis_url
        return redis_url.parse(self.DRAMATIQ_REDIS_URL.get_secret_value())

    # % endif
    # % if cookiecutter.__redis
    @cached_property
    def redis_url(self) -> redis_url.RedisURL:
        """`REDIS_URL`, or the URL of `REDIS_HOST` and the other parts."""
        if self.REDIS_URL is not None:
            return redis_url.parse(self.REDIS_URL.get_secret_value())
        password = self.REDIS_PASSWORD.get_secret_value() if self.REDIS_PASSWORD else ""
        return redis_url.of_parts(self.REDIS_HOST, self.REDIS_PORT, self.REDIS_DB, password)

    # % endif
    # % if cookiecutter.cache_backend in ["file", "all"]
    @property
    def cache_folder(self) -> Path:
        """The namespace's folder in `CACHE_FILE_PATH`, which starts at the project's root."""
        return ROOT / self.CACHE_FILE_PATH / self.cache_namespace

    # % endif
    @cached_property
    def database_url(self) -> URL:
        """`DATABASE_URL`, or the URL of `POSTGRES_HOST` and the other parts, for asyncpg.

        It also has the other settings of connections.
        """
        url = URL.create(
            "postgresql+asyncpg",
            username=self.POSTGRES_USER,
            password=self.POSTGRES_PASSWORD.get_secret_value(),
            host=self.POSTGRES_HOST,
            port=self.POSTGRES_PORT,
            database=self.POSTGRES_DB,
        )
        if self.POSTGRES_SSLMODE:
            url = url.set(query=postgres_url.parse_options({"sslmode": self.POSTGRES_SSLMODE}))
        if self.DATABASE_URL is not None:
            url = postgres_url.parse(self.DATABASE_URL.get_secret_value())
        options = {
            "lock_timeout": f"{self.DATABASE_LOCK_TIMEOUT_SECONDS}s",
            "idle_in_transaction_session_timeout": f"{self.DATABASE_IDLE_TRANSACTION_SECONDS}s",
        }
        if self.DATABASE_POOLER:
            options[postgres_url.POOLER] = "true"
        return url.set(query={**options, **url.query})


def load_settings(*, dev_server: bool = True) -> Settings:
    """Read the settings. Raises InvalidSettingsError.

    `ENV_FILE` names a file to read instead of `.env` (`ENV_FILE=.env.prod python cli.py db
    migrate`). If it is empty, no file is read. With `dev_server`, the URLs of the servers of
    `cli.py dev` are read too.
    """
    files = _env_files(dev_server=dev_server)
    secrets = SECRETS_DIR if SECRETS_DIR.is_dir() else None
    try:
        return Settings(_env_file=files, _secrets_dir=secrets)
    except ValidationError as error:
        raise InvalidSettingsError(_describe(error)) from None
    except SettingsError as error:  # a list that is not JSON, without the value
        raise InvalidSettingsError(f"Invalid settings: {error}") from None
    except UnicodeDecodeError:
        names = " or ".join(str(path) for path in (*files, secrets) if path)
        raise InvalidSettingsError(f"{names} is not encoded as UTF-8. Save it as UTF-8.") from None


def _env_files(*, dev_server: bool) -> tuple[Path, ...]:
    """Return the files to read. Later files override earlier ones."""
    named = os.environ.get("ENV_FILE")
    if named is None:
        return (DEV_ENV_FILE, ROOT / ".env") if dev_server else (ROOT / ".env",)
    if not named:
        return ()
    if not (ROOT / named).is_file():
        raise InvalidSettingsError(f"ENV_FILE is {named}, but this file does not exist.")
    return (ROOT / named,)


def _describe(error: ValidationError) -> str:
    lines = ["Invalid settings:"]
    for fault in error.errors(include_input=False):
        name = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        lines += [f"  {name}: {line}" if name else f"  {line}" for line in message.splitlines()]
    return "\n".join(lines)


@lru_cache
def get_settings() -> Settings:
    return load_settings()


def override_setting(name: str, value: object) -> None:
    """Override a setting, in child processes too, unless `value` is None."""
    if value is not None:
        os.environ[name] = str(value).lower()
        get_settings.cache_clear()
