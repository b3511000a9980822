"""Kills processes that tests start, even if the test run itself is killed."""

import subprocess

_KILL_AT_END_OF_INPUT = 'read -r _; kill -s KILL -- "-$0"'


class ProcessKiller:
    """Kills all processes of a session on `kill()`, or when this process ends.

    When this process ends, the kernel closes the pipe to the shell, which then kills them.
    """

    def __init__(self, session: int) -> None:
        self._shell = subprocess.Popen(
            ["sh", "-c", _KILL_AT_END_OF_INPUT, str(session)],  # noqa: S607 - the sh on the PATH
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # such as "no such process"
            start_new_session=True,  # Ctrl-C must not end it first
        )

    def kill(self) -> None:
        self._shell.communicate()
