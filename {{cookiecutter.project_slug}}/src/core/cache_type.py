"""The cache backends that this service supports."""

from typing import Final, Literal, get_args

CacheType = Literal[
    # The first is the default.
    # % if cookiecutter.cache_backend in ["redis", "all"]
    "redis",
    # % endif
    # % if cookiecutter.cache_backend in ["file", "all"]
    "file",
    # % endif
    "memory",
]
DEFAULT: Final[CacheType] = get_args(CacheType)[0]
