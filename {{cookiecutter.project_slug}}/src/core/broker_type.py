"""The brokers that this service supports."""

from typing import Final, Literal, get_args

BrokerType = Literal[
    # The first is the default.
    # % if cookiecutter.__queue_redis
    "redis",
    # % endif
    # % if cookiecutter.__queue_rabbitmq
    "rabbitmq",
    # % endif
]
DEFAULT: Final[BrokerType] = get_args(BrokerType)[0]
