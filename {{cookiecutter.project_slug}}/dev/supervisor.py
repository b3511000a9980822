"""Run a command that must not outlive the process that wants it.

Its owner calls `supervised()`, which runs this very file as a process between them. The owner
holds the other end of that one's standard input and never writes to it. When the owner ends,
be it by `kill -9`, the kernel closes the pipe; the supervisor reads end of file and stops the
command. It starts in some 30 ms, with `-I -S` and the standard library alone.
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
COMMAND_NOT_STARTED = 127  # as the shell has it

Account = tuple[int, int]  # the user and the group that run a command, where we are root


@contextmanager
def supervised(
    command: Sequence[object],
    *,
    stop_signal: signal.Signals = signal.SIGTERM,
    limit: float = 10.0,
    remove: Sequence[Path] = (),
    account: Account | None = None,
    lock: int | None = None,  # a file descriptor to keep open as long as the command runs
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` under a supervisor while the block runs; yield the supervisor's process.

    When the block ends, or this process, the command gets `stop_signal`, is killed after `limit`
    seconds, and `remove` is deleted. `wait()` gives its status, and 128 + n for signal n.
    """
    options = {
        "command": [str(argument) for argument in command],
        "stop_signal": stop_signal,
        "limit": limit,
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
        start_new_session=True,  # Ctrl-C is for the owner, which stops things in their order
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    try:
        yield supervisor
    finally:
        ask_to_stop(supervisor)
        supervisor.wait()


def ask_to_stop(supervisor: subprocess.Popen[bytes]) -> None:
    """Close the pipe, as the death of the owner would."""
    if supervisor.stdin:
        supervisor.stdin.close()


def main(options: dict[str, Any]) -> int:
    """Supervise in this process; return the command's status."""
    # Signals are for the owner. No SIG_IGN: what is ignored stays ignored in the command.
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows lacks one
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
        # What it left behind: the children of a reloader that was itself killed.
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
        start_new_session=True,  # a group of its own, which can be killed as a whole
        user=user,
        group=group,
        extra_groups=[] if options["account"] else None,
        close_fds=False,  # there is none but the lock
        # Safe here: no other thread runs yet. A change of user comes first.
        preexec_fn=partial(_end_with_supervisor, options["stop_signal"]) if POSIX else None,  # noqa: PLW1509
    )


def _end_with_supervisor(stop_signal: int) -> None:
    """Have the Linux kernel stop the command should the supervisor itself be killed."""
    if sys.platform == "linux":
        with suppress(ImportError):  # a Python may be built without it
            import ctypes  # noqa: PLC0415

            ctypes.CDLL(None).prctl(1, stop_signal)  # PR_SET_PDEATHSIG


def _stop_at_end_of_input(
    child: subprocess.Popen[bytes], options: dict[str, Any], stopping: Event
) -> None:
    # os.read and not sys.stdin: a thread inside a buffered read hangs Python's own exit.
    while os.read(0, 1024):
        pass
    stopping.set()
    child.send_signal(options["stop_signal"] if POSIX else signal.SIGTERM)
    time.sleep(options["limit"])
    child.kill()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
