"""A plugin of pytest: what shares a service or a rendering runs in one worker of pytest-xdist.

That is a variant, or else a file. xdist's own marks for this need an attribute of tests that pytest
9.2 no longer has.
"""

import os
import re

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling, Scheduling

from tests.variants import VARIANTS

VARIANT = re.compile(rf"\[({'|'.join(VARIANTS)})\b")
LONGEST = ["test_service.py", "test_variants.py"]  # to begin with, and to end with what is short


class Scopes(LoadScopeScheduling):  # type: ignore[misc] # it has no types
    def _split_scope(self, nodeid: str) -> str:
        variant = VARIANT.search(nodeid)
        return variant[1] if variant else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    config.option.loadscopereorder = False  # else what has most tests comes first
    return Scopes(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: much of the time a service's tests wait for servers."""
    return (os.cpu_count() or 1) + 1
