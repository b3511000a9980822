import math
import time
from typing import Any

import structlog
from dramatiq import Broker, Message
from dramatiq.broker import MessageProxy
from dramatiq.common import current_millis
from dramatiq.errors import BrokerConnectionError, Retry
from dramatiq.middleware import MiddlewareError, Retries, Shutdown

from src.core.failures import describe
from src.domain.errors import DomainError
from src.tasks.engine.brokers.base import DIED_AT, ERROR, NOT_RUNNABLE_SINCE, PATIENCE, RETRY_DELAY
from src.tasks.engine.dramatiq_patches import monotonic_millis
from src.tasks.engine.middleware.resources import NotRecordedError
from src.tasks.outbox import bind

log = structlog.get_logger(__name__)

BROKER_RETRY_SECONDS = 1.0
POSTPONE_MILLISECONDS = 5_000
MAX_POSTPONE_MILLISECONDS = 300_000


class NotRunnableError(MiddlewareError, Retry):
    """The message is for another release. Dramatiq does not log a `Retry` as an error."""


class RetriesMiddleware(Retries):
    """Dramatiq's retries with exponential backoff and jitter, but none after a domain error.

    It also records in a message when its retry is due, and when and why it became a dead letter.

    A message for an unknown actor, or with arguments that do not fit, waits for a worker of another
    release. That counts as no attempt. After PATIENCE it becomes a dead letter.
    """

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        if "eta" in message.options:
            # Dramatiq sets the time of the failure, so the backoff would count as delay.
            message.options["requeue_timestamp"] = message.options["eta"]
            if delay is not None:
                message.options[RETRY_DELAY] = delay

    def before_delay_message(self, broker: Broker, message: MessageProxy) -> None:
        """Wait at most the delay: the clocks of two workers may differ, and a clock may be set."""
        left = message.options["eta"] - current_millis()
        left = min(left, message.options.get(RETRY_DELAY, math.inf))
        message.options["eta"] = monotonic_millis() + max(0, left)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        actor = broker.actors.get(message.actor_name)
        if actor is None:
            raise NotRunnableError(f"This worker has no actor {message.actor_name}.")
        try:
            bind(actor, message)
        except TypeError as error:
            raise NotRunnableError(str(error)) from None
        message.options.pop(NOT_RUNNABLE_SINCE, None)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any | None = None,
        exception: BaseException | None = None,
    ) -> None:
        if isinstance(exception, DomainError):
            message.fail()
        elif exception is not None and not message.failed:
            self._retry(broker, message, exception)
        if not message.failed:
            return
        message.options[DIED_AT] = current_millis()
        if exception is not None:
            message.options[ERROR] = describe(exception)
        else:
            message.options.setdefault(ERROR, "The message is older than its max_age.")

    after_skip_message = after_process_message

    def _retry(self, broker: Broker, message: MessageProxy, exception: BaseException) -> None:
        """Enqueue the next attempt. If that is impossible, make the message a dead letter.

        Dramatiq only logs an error of a hook. It would then acknowledge the message and lose it.
        """
        before = dict(message.options)
        while True:
            try:
                if isinstance(exception, Shutdown):  # the task has `notify_shutdown=True`
                    broker.enqueue(message)  # type: ignore[arg-type]  # a proxy works too
                elif isinstance(exception, NotRecordedError):  # the attempt did not start
                    broker.enqueue(message, delay=POSTPONE_MILLISECONDS)  # type: ignore[arg-type]  # a proxy works too
                elif isinstance(exception, NotRunnableError):
                    _wait_for_release(broker, message, exception)
                else:
                    retry = super().after_process_message
                    retry(broker, message, exception=exception)  # type: ignore[no-untyped-call]  # untyped in Dramatiq
            except BrokerConnectionError as error:
                log.warning("task_retry_postponed", cause=str(error))
                message.options.clear()
                message.options.update(before)
                time.sleep(BROKER_RETRY_SECONDS)
            except Exception:
                log.exception("task_retry_abandoned")
                message.fail()
                return
            else:
                return


def _wait_for_release(broker: Broker, message: MessageProxy, error: NotRunnableError) -> None:
    """Enqueue the message again, each time with twice the delay, or fail it after PATIENCE."""
    waited = current_millis() - message.options.setdefault(NOT_RUNNABLE_SINCE, current_millis())
    if waited >= PATIENCE:
        message.fail()
        return
    log.warning("task_not_runnable", cause=str(error))
    delay = min(max(waited, POSTPONE_MILLISECONDS), MAX_POSTPONE_MILLISECONDS)
    broker.enqueue(message, delay=delay)  # type: ignore[arg-type]  # a proxy works too
