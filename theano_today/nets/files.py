"""Write files that are whole or not there, and say clearly why one cannot be used."""
import contextlib
import fcntl
import glob
import os
import re
import socket
import stat
import tempfile

__all__ = ['LOCK', 'FileError', 'check_writable', 'locked', 'open_regular', 'remove_leftovers',
           'replacing']

SUFFIX = '.partial'
LOCK = '.lock'
_LEFTOVER = re.compile(r'\.[a-z0-9_]{8}' + re.escape(SUFFIX))  # as tempfile.mkstemp names them


class FileError(ValueError):
    """A file cannot be used as it is; the message says which, where, and what to do."""


def open_regular(fname):
    """Open a file for reading in binary mode; refuse folders, pipes and devices, which never end.

    Raises
    ------
    FileNotFoundError
    FileError
        If it is there, but cannot be opened or is no regular file.
    """
    fname = os.path.expanduser(fname)
    try:
        if not stat.S_ISREG(os.stat(fname).st_mode):
            kind = 'a folder' if os.path.isdir(fname) else 'a pipe or a device, not a file'
            raise FileError(f'{fname} cannot be read: it is {kind}.')
        return open(fname, 'rb')
    except (FileNotFoundError, FileError):
        raise
    except OSError as error:
        raise FileError(f'{fname} cannot be read: {error.strerror}.') from error
    except ValueError as error:
        raise FileError(f'{fname!r} is no name of a file: {error}.') from error


@contextlib.contextmanager
def replacing(fname):
    """Open a file to be written that takes its name only when it is whole and on the disk.

    Until then, and for ever if writing fails, an earlier file of that name stays as it is.

    Raises
    ------
    FileError
        If the file cannot be written: no such folder, no permission, disk full.
    """
    try:
        handle, temporary = _temporary(fname)
        try:
            with os.fdopen(handle, 'wb') as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
                os.fchmod(f.fileno(), 0o666 & ~_umask())  # mkstemp's are for their owner alone
                os.replace(temporary, fname)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise
        _sync_folder(fname)
    except OSError as error:
        kept = ' What was there before is unchanged.' if os.path.lexists(fname) else ''
        raise FileError(f'{fname} cannot be written: {error.strerror or error}.{kept}') from error


def _temporary(fname):
    """Make a locked file beside `fname`; the lock, which dies with us, says it is in use."""
    while True:
        handle, temporary = tempfile.mkstemp(
            dir=os.path.dirname(os.path.abspath(fname)), prefix=os.path.basename(fname) + '.',
            suffix=SUFFIX)
        if _lock(handle) and os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # another process took it for a leftover before it was locked
        with contextlib.suppress(OSError):
            os.remove(temporary)


def _lock(handle):
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


@contextlib.contextmanager
def beside(fname):
    """Keep an empty file beside `fname` for as long as the block lasts; its path."""
    handle, path = _temporary(fname)
    try:
        yield path
    finally:
        os.remove(path)
        os.close(handle)


@contextlib.contextmanager
def locked(fname):
    """Keep `fname` from other processes that ask for the same, for as long as the block lasts.

    The lock is on a file beside it, `fname` + '.lock', which goes with the block.  The kernel
    releases the lock when the process dies, so a file that a killed one has left locks nobody out.
    A file system without locks does not lock.

    Raises
    ------
    FileError
        If another process has it; the message names the process.
    """
    path = fname + LOCK
    try:
        handle = _open_locked(path)
    except OSError as error:
        raise FileError(f'{path} cannot be written: {error.strerror or error}.') from error
    if handle is None:
        raise FileError(f'{fname} is in use by {_owner(path)}. Wait for its end, stop it, or work '
                        'in another folder.')
    try:
        with contextlib.suppress(OSError):  # on a full disk the lock does without a name
            os.truncate(handle, 0)
            os.write(handle, f'{os.getpid()} {socket.gethostname()}'.encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)  # before the lock goes: after that it could be the next one's
        os.close(handle)


def check_free(fname):
    """Raise FileError if another process has `fname` (`locked`)."""
    with locked(fname):
        pass


def remove_unlocked(*patterns):
    """Remove files; if another process has one of them `locked`, none.

    Parameters
    ----------
    patterns : str
        Names of files, with `*` for what varies.

    Raises
    ------
    FileError
        If another process has one.
    """
    fnames = {fname[:-len(LOCK)] if fname.endswith(LOCK) else fname
              for pattern in patterns for fname in glob.glob(pattern) + glob.glob(pattern + LOCK)}
    with contextlib.ExitStack() as stack:
        for fname in sorted(fnames):
            stack.enter_context(locked(fname))
        for fname in fnames:
            with contextlib.suppress(FileNotFoundError):
                os.remove(fname)


def _open_locked(path):
    """Return the handle of a lock file; None if another process has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        if not _lock(handle):
            os.close(handle)
            return None
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)  # its owner has removed it before we had the lock


def _owner(path):
    """Name the process of which a lock file tells."""
    with contextlib.suppress(OSError, ValueError), open(path) as f:
        pid, host = f.read(500).split()
        where = '' if host == socket.gethostname() else f' on {host}'
        return f'process {int(pid)}{where}'
    return 'another process'  # which has not written its number yet


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(fname):
    """Let the new name, not only the content, survive a power cut."""
    folder = os.open(os.path.dirname(os.path.abspath(fname)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_writable(fname):
    """Raise FileError now if `fname` could not be written later.

    For the end of a long computation, which would otherwise learn of it too late.
    """
    if os.path.isdir(fname):
        raise FileError(f'{fname} cannot be written: there is a folder of that name.')
    try:
        handle, temporary = _temporary(fname)
        os.close(handle)
        os.remove(temporary)
    except OSError as error:
        raise FileError(f'{fname} cannot be written: {error.strerror or error}.') from error


def remove_leftovers(*patterns):
    """Remove what a killed process has left of files it was writing with `replacing`.

    Parameters
    ----------
    patterns : str
        Names of such files, with `*` for what varies.  Files another process is writing right now
        stay, and the locks it holds (see `locked`).
    """
    for pattern in patterns:
        leftovers = [path for path in glob.glob(pattern + '.*' + SUFFIX)
                     if _LEFTOVER.fullmatch(path[-len(SUFFIX) - 9:])]
        for path in leftovers + glob.glob(pattern + LOCK):
            if os.path.islink(path):
                continue
            with contextlib.suppress(OSError):
                with open(path, 'rb') as f:
                    if _lock(f.fileno()):
                        os.remove(path)
