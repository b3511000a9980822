"""For `python -m dramatiq src.tasks.jobs tests.test_tasks.deeds_of_a_worker`."""

import os

from src.tasks import broker
from tests.test_tasks.deeds import declare

declare(broker, os.environ["TEST_QUEUE"])
