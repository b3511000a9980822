"""Run a command that must not outlive the process that wants it.

    python -m dev.guard [options] -- command [argument ...]

The owner holds the other end of the guard's standard input and never writes to it.
When the owner ends, however it died, the kernel closes that pipe, the guard reads end
of file and stops the command. `atexit` hooks and signal handlers cannot promise this:
they do not run after `kill -9`.

Only the standard library is used: owners start this very file with `python -I -S`,
which takes some 30 ms and needs neither the project on the path nor its packages.
"""

import argparse
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

POSIX = os.name == "posix"
COMMAND_NOT_STARTED = 127  # as the shell has it
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


class ServerError(Exception):
    """A server cannot be started; the message is one sentence for the developer."""


class Account(NamedTuple):
    """The user and group that a command runs as, when the guard is root."""

    uid: int
    gid: int


@contextlib.contextmanager
def guarded(
    command: Sequence[str | Path],
    *,
    stop_signal: signal.Signals = signal.SIGTERM,
    limit: float = 10.0,
    remove: Sequence[Path] = (),
    account: Account | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` under a guard while the block runs; the process yielded is the guard.

    On leaving, or when this process dies, the command gets `stop_signal`, is killed after
    `limit` seconds, and the files and folders in `remove` are deleted. They are kept when
    the command ends by itself, since the block is then still there to decide.
    `wait()` gives the command's status, and 128 + n where signal n ended it.
    `output` receives standard output and standard error.

    The pipe is not inherited by programs that this process starts, but it is by bare
    `os.fork()` children: the guard then waits for the last of them.
    """
    options = ["--stop-signal", str(int(stop_signal)), "--limit", str(limit)]
    for path in remove:
        options += ["--remove", str(path)]
    if account:
        options += ["--account", f"{account.uid}:{account.gid}"]
    with subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *options, "--", *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        cwd=cwd,
        env=env,
        # Ctrl-C in the terminal is for the owner, which then stops things in their order.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    ) as guard:
        try:
            yield guard
        finally:
            # Popen's own exit would close the output first, and the command might still
            # have to say something.
            if guard.stdin:
                guard.stdin.close()
            guard.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    stopping = threading.Event()
    _leave_to_owner()  # before anybody can see that the command runs
    try:
        child = _start(options.command, options.account, options.stop_signal)
    except OSError as error:
        sys.stderr.write(f"Cannot start {options.command[0]}: {error.strerror}.\n")
        return COMMAND_NOT_STARTED

    def stop() -> None:
        if not stopping.is_set():
            stopping.set()
            _stop(child, options.stop_signal, options.limit)

    signal.signal(signal.SIGTERM, lambda *_: stop())
    threading.Thread(target=_call_at_end_of_input, args=(stop,), daemon=True).start()
    status = child.wait()
    _kill_group(child.pid)
    if stopping.is_set():
        for path in options.remove:
            _remove(path)
    return status if status >= 0 else 128 - status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dev.guard",
        description="Run a command until it ends or standard input does.",
    )
    parser.add_argument("--stop-signal", type=_signal, default=signal.SIGTERM, metavar="NUMBER")
    parser.add_argument(
        "--limit", type=float, default=10.0, help="seconds between that and SIGKILL"
    )
    parser.add_argument(
        "--remove", type=Path, action="append", default=[], help="delete once stopped"
    )
    parser.add_argument(
        "--account", type=_account, metavar="UID:GID", help="run the command as these"
    )
    parser.add_argument("command", nargs="+")
    return parser.parse_args(arguments)


def _signal(number: str) -> signal.Signals:
    return signal.Signals(int(number))


def _account(text: str) -> Account:
    uid, _, gid = text.partition(":")
    return Account(int(uid), int(gid))


def _start(
    command: Sequence[str], account: Account | None, stop_signal: signal.Signals
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a group of its own, so that _kill_group() finds all of it
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        # Safe here: no other thread runs yet.
        preexec_fn=_stop_with_guard(stop_signal),  # noqa: PLW1509
    )


def _stop_with_guard(stop_signal: signal.Signals) -> Callable[[], None] | None:
    """Let the Linux kernel stop the command should the guard itself be killed.

    The signal comes when the *thread* that started the command ends, here the main thread;
    a change of user erases the request, but `preexec_fn` runs after that.
    """
    if sys.platform == "linux":
        # A Python may be built without it: then only the pipe is left.
        with contextlib.suppress(ImportError):
            import ctypes  # noqa: PLC0415

            return functools.partial(_ask_kernel, ctypes.CDLL(None).prctl, stop_signal, os.getpid())
    return None


def _ask_kernel(prctl: Callable[[int, int], int], stop_signal: int, guard: int) -> None:
    prctl(PR_SET_PDEATHSIG, stop_signal)
    if os.getppid() != guard:  # it died before we asked
        os._exit(COMMAND_NOT_STARTED)


def _leave_to_owner() -> None:
    """SIGINT and SIGHUP are the owner's; SIGTERM to the guard stops the command, in order.

    Handlers, not SIG_IGN: what is ignored stays ignored in the programs that we start.
    """
    signal.signal(signal.SIGINT, lambda *_: None)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, lambda *_: None)


def _call_at_end_of_input(stop: Callable[[], None]) -> None:
    # os.read and not sys.stdin: a thread inside a buffered read hangs Python's own exit.
    while os.read(0, 1024):
        pass
    stop()


def _stop(child: subprocess.Popen[bytes], stop_signal: signal.Signals, limit: float) -> None:
    if POSIX:
        child.send_signal(stop_signal)
    else:
        child.terminate()
    killer = threading.Timer(limit, child.kill)
    killer.daemon = True
    killer.start()


def _kill_group(group: int) -> None:
    """Kill what a command left behind: the children of a reloader that was itself killed."""
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing left to kill
            os.killpg(group, signal.SIGKILL)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
