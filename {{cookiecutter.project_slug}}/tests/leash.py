"""No process that a test starts outlives the suite, even if that is killed."""

import subprocess

_KILL_AT_END_OF_INPUT = 'read -r _; kill -s KILL -- "-$0"'


class Leash:
    """Kills a process that leads a session, and its children, when it is pulled.

    When this process dies, the kernel closes the pipe, which pulls it too.
    """

    def __init__(self, session: int) -> None:
        self._shell = subprocess.Popen(
            ["sh", "-c", _KILL_AT_END_OF_INPUT, str(session)],  # noqa: S607 - wherever the system has it
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # "no such process"
            start_new_session=True,  # else Ctrl-C would end it first
        )

    def pull(self) -> None:
        self._shell.communicate()
