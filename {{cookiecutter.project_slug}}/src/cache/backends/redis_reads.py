"""Reads that share commands, because redis-py and the network cost more than the value."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

MAX_NAMES = 100  # of a command; the next one does not wait for it

Found = dict[str, bytes | None]


@dataclass(slots=True)
class _Command:
    names: dict[str, None] = field(default_factory=dict)  # without duplicates
    callers: list[asyncio.Future[Found]] = field(default_factory=list)


class SharedReads:
    """Sends one `read` for all calls in a turn of the event loop.

    A call does not join a command that has been sent: its result is not older than the call.
    """

    def __init__(self, read: Callable[[Sequence[str]], Awaitable[Sequence[bytes | None]]]) -> None:
        self._read = read
        self._next: _Command | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        command = self._next
        if command is None or len(command.names) >= MAX_NAMES:
            command = self._next = _Command()
            task = asyncio.create_task(self._send(command))  # starts in the next turn
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        # Not the task itself: a caller that is cancelled must not cancel it for the others.
        caller = asyncio.get_running_loop().create_future()
        command.callers.append(caller)
        command.names.update(dict.fromkeys(names))
        found = await caller
        return [found[name] for name in names]

    async def _send(self, command: _Command) -> None:
        if self._next is command:
            self._next = None
        names = list(command.names)
        try:
            found = dict(zip(names, await self._read(names), strict=True))
        except Exception as error:  # noqa: BLE001 - the callers handle it
            for caller in command.callers:
                if not caller.done():
                    caller.set_exception(error)
        else:
            for caller in command.callers:
                if not caller.done():
                    caller.set_result(found)

    async def aclose(self) -> None:
        """Wait for the commands of callers that were cancelled."""
        await asyncio.gather(*self._tasks)
