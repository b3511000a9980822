"""Runs a command that stops when the process that started it ends, even after `kill -9`.

`supervised()` runs this file as a supervisor process, which runs the command. The supervisor's
standard input is a pipe from the owner. When the owner ends, the kernel closes the pipe; then the
supervisor reads end-of-file and stops the command. This file imports only the standard library, and
starts in about 30 ms.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import IO, Any

POSIX = os.name == "posix"
COMMAND_NOT_STARTED = 127  # the status that a shell returns

Account = tuple[int, int]  # user ID and group ID to run the command, if this process is root


@contextmanager
def supervised(
    command: Sequence[object],
    *,
    stop_signal: signal.Signals = signal.SIGTERM,
    stop_timeout: float = 10.0,  # seconds
    remove: Sequence[Path] = (),
    account: Account | None = None,
    lock: int | None = None,  # a file descriptor that the command inherits
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` under a supervisor until the block ends; yield the supervisor's process.

    When the block or this process ends, the command gets `stop_signal`, and SIGKILL after
    `stop_timeout`. Then the paths in `remove` are deleted. `wait()` returns the command's status,
    which is 128 + n after signal n.
    """
    options = {
        "command": [str(argument) for argument in command],
        "stop_signal": stop_signal,
        "stop_timeout": stop_timeout,
        "remove": [str(path) for path in remove],
        "account": account,
    }
    supervisor = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        cwd=cwd,
        env=env,
        pass_fds=() if lock is None else (lock,),
        start_new_session=True,  # only the owner gets Ctrl-C
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    try:
        yield supervisor
    finally:
        request_stop(supervisor)
        supervisor.wait()


def request_stop(supervisor: subprocess.Popen[bytes]) -> None:
    """Close the pipe, which also happens when the owner ends."""
    if supervisor.stdin:
        supervisor.stdin.close()


def main(options: dict[str, Any]) -> int:
    """Run the supervisor; return the command's status."""
    # The owner handles signals. SIG_IGN does not work here: the command would inherit it.
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
        signal.signal(getattr(signal, name), lambda *_: None)
    try:
        child = _start(options)
    except OSError as error:
        sys.stderr.write(f"Cannot start {options['command'][0]}: {error.strerror}.\n")
        return COMMAND_NOT_STARTED
    stopping = Event()
    Thread(target=_stop_at_end_of_input, args=(child, options, stopping), daemon=True).start()
    status = child.wait()
    if sys.platform != "win32":
        # Kill remaining children, such as those of a reloader that was killed.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    for path in map(Path, options["remove"] if stopping.is_set() else ()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return status if status >= 0 else 128 - status


def _start(options: dict[str, Any]) -> subprocess.Popen[bytes]:
    user, group = options["account"] or (None, None)
    return subprocess.Popen(
        options["command"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # its own process group, to kill all of it
        user=user,
        group=group,
        extra_groups=[] if options["account"] else None,
        close_fds=False,  # the only open one is the lock
        # Safe here: no other thread runs yet. It runs after the change of user.
        preexec_fn=partial(_end_with_supervisor, options["stop_signal"]) if POSIX else None,  # noqa: PLW1509
    )


def _end_with_supervisor(stop_signal: int) -> None:
    """Make the Linux kernel stop the command if the supervisor is killed."""
    if sys.platform == "linux":
        with suppress(ImportError):  # some builds of Python lack it
            import ctypes  # noqa: PLC0415

            ctypes.CDLL(None).prctl(1, stop_signal)  # PR_SET_PDEATHSIG


def _stop_at_end_of_input(
    child: subprocess.Popen[bytes], options: dict[str, Any], stopping: Event
) -> None:
    # os.read instead of sys.stdin: a thread in a buffered read blocks the exit of Python.
    while os.read(0, 1024):
        pass
    stopping.set()
    child.send_signal(options["stop_signal"] if POSIX else signal.SIGTERM)
    time.sleep(options["stop_timeout"])
    child.kill()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
