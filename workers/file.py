"""Opens, reads and writes files for the host.

The modes, the flags and the words are the peer's (qemu's qga/commands-posix.c); fopen(3), open(2), fifo(7) say the rest.
Differences from the peer, all on purpose:

* A write goes to the kernel at once, so that a full disk is told by the write that met it, not by a later flush or close.
  The policy's `file-buffer` (bytes, none by default) brings the peer's habit back: what is smaller waits for a flush, a
  close, a seek, a read, or company.
* What a fifo, a terminal or a failing disk gave before it gave no more is returned, not thrown away with an error.
* A handle whose close failed is gone, since its descriptor is.
* At most `MOST` files are open at once.

Everything is opened non-blocking: a fifo without a writer or a silent terminal costs no time.  Settings: `statedir`, where
the counter of handles lives; `file-buffer`.  Under a policy with file rules, paths and opened files are looked at as
`workers/filerules.py` says, and nothing else is within this process's reach.
"""

from __future__ import annotations

import os

from privsep import blob, frame
from protocol.errors import CommandError
from workers.base64 import decoded
from workers.counter import FIRST, HandleCounter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from policy.rules import Rule
    from privsep.runtime import Context
    from workers.filerules import FileRules

MOST: Final = 1024  # files open at once
LARGEST_READ: Final = 48 << 20  # bytes; as the peer, whose base64 text must fit its 64 MiB token
_PIECE: Final = 256 << 10  # bytes asked for at a time after a short read
_NEW_FILE_MODE: Final = 0o666
_ALWAYS: Final = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_TRUNCATE: Final = os.O_CREAT | os.O_TRUNC
_APPEND: Final = os.O_CREAT | os.O_APPEND
_FLAGS: Final = {
    mode: flags
    for modes, flags in (
        ("r rb", os.O_RDONLY),
        ("w wb", os.O_WRONLY | _TRUNCATE),
        ("a ab", os.O_WRONLY | _APPEND),
        ("r+ rb+ r+b", os.O_RDWR),
        ("w+ wb+ w+b", os.O_RDWR | _TRUNCATE),
        ("a+ ab+ a+b", os.O_RDWR | _APPEND),
    )
    for mode in modes.split()
}
_WHENCE: Final = {"set": os.SEEK_SET, "cur": os.SEEK_CUR, "end": os.SEEK_END}


class OpenFile:
    """One open file; `pending` is what waits to be written, always empty without the setting `file-buffer`.

    The counts are for the log: a host moves a file in thousands of requests, which are told together at its close."""

    __slots__ = ("fd", "writable", "pending", "reads", "writes", "bytes_read", "bytes_written", "rule", "append")

    def __init__(self, fd: int, writable: bool, rule: Rule | None = None, append: bool = False) -> None:
        self.rule = rule  # with a `max-size` to keep, else None
        self.append = append
        self.fd = fd
        self.writable = writable
        self.pending = bytearray()
        self.reads = self.writes = self.bytes_read = self.bytes_written = 0


class Table:
    """The open files by handle, and where the handles' numbers come from."""

    __slots__ = ("files", "counter", "buffer", "rules")

    def __init__(self, ctx: Context) -> None:
        folder: int | None
        path = ctx.root + ctx.setting("statedir", "/var/run")
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as e:
            ctx.log.error(f"cannot open the state folder {path}: {e.strerror}")
            folder = None
        self.files: dict[int, OpenFile] = {}
        self.rules: FileRules | None = None
        if ctx.scope is not None and (rules := ctx.scope.of("file")):
            from workers.filerules import FileRules  # most policies have no rules

            self.rules = FileRules(ctx, rules)
            ctx.granted = self.rules.granted
        self.counter = HandleCounter(folder, in_place=self.rules is not None)
        if self.counter.fault:
            ctx.log.error(f"no file can be opened: {self.counter.fault}")
        self.buffer = int(ctx.setting("file-buffer") or 0)


def prepare(ctx: Context) -> None:
    """Opens the state folder, and makes the memory for bulk data, while its row's walls are not up yet."""
    blob.window()
    ctx.state.__dict__["files"] = Table(ctx)


def holds(ctx: Context) -> bool:
    """Whether files are open."""
    return bool(_table(ctx).files)


def stopping(ctx: Context) -> None:
    """Writes what waits, as the peer's exit does."""
    for handle, file in _table(ctx).files.items():
        try:
            _flush(file)
        except OSError as e:
            ctx.log.error(f"handle {handle}: {len(file.pending)} bytes could not be written: {e.strerror}")


def guest_file_open(ctx: Context, path: str, mode: str = "r") -> int:
    """Opens `path` as fopen would; returns a handle whose number was never given out before."""
    flags = _FLAGS.get(mode)
    if flags is None:
        raise CommandError(f"invalid file open mode '{mode}'")
    failed = f"failed to open file '{path}' (mode: '{mode}')"
    table = _table(ctx)
    if len(table.files) >= MOST:
        raise CommandError(f"{failed}: {MOST} files are open already, close some first")
    if "\0" in path:
        raise CommandError(f"{failed}: the path has a NUL in it")
    try:
        name = (ctx.root + path if path.startswith("/") else path).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise CommandError(f"{failed}: the path is not Unicode") from None
    grant = ctx.grant if table.rules is not None else None
    try:
        fd, new = _open(name, _first_flags(flags, grant) | _ALWAYS)
    except OSError as e:
        if grant is not None and table.rules is not None and table.rules.replaced(grant):
            ctx.leave = True
            raise CommandError(f"{failed}: another file has taken its place, ask again") from None
        raise CommandError.from_errno(failed, e.errno or 0) from None
    rule: Rule | None = None
    try:
        if grant is not None and table.rules is not None:
            rule = _admit(ctx, table.rules, fd, name, flags, grant, new=new)
        if new:
            _give_mode(fd, name, path, mode)
        handle = table.counter.take()
    except CommandError:
        os.close(fd)
        raise
    limited = rule if rule is not None and rule.has("max-size") else None
    table.files[handle] = OpenFile(fd, flags & os.O_ACCMODE != os.O_RDONLY, limited, bool(flags & os.O_APPEND))
    ctx.log.info(f"guest-file-open, filepath: {path!r}, mode: {mode}, handle: {handle}")
    return handle


def guest_file_close(ctx: Context, handle: int) -> dict[str, object]:
    """Writes what waits and closes; the handle is gone even when that fails."""
    file = _find(ctx, handle)
    del _table(ctx).files[handle]
    error: OSError | None = None
    try:
        _flush(file)
    except OSError as e:
        error = e
    try:
        os.close(file.fd)
    except OSError as e:  # a file system that keeps an error for the last moment, as NFS does
        error = e
    if error is not None:
        raise CommandError.from_errno("failed to close handle", error.errno or 0)
    ctx.log.info(
        f"guest-file-close, handle: {handle}, {file.reads} reads of {file.bytes_read} bytes, "
        f"{file.writes} writes of {file.bytes_written} bytes"
    )
    return {}


def guest_file_read(ctx: Context, handle: int, count: int = 4096) -> dict[str, object]:
    """Up to `count` bytes; `eof` only when the end was met, so not when exactly the rest was asked for."""
    file = _find(ctx, handle)
    if not 0 <= count <= LARGEST_READ:
        raise CommandError(f"value '{count}' is invalid for argument count")
    if file.pending:
        try:
            _flush(file)
        except OSError as e:
            raise CommandError.from_errno("failed to flush file", e.errno or 0) from None
    file.reads += 1
    try:
        if count > frame.INLINE:
            return _read_large(file, count)
        data, eof = _read(file.fd, count)
    except OSError as e:
        raise CommandError.from_errno("failed to read file", e.errno or 0) from None
    file.bytes_read += len(data)
    return {"count": len(data), "buf-b64": data, "eof": eof}


def guest_file_write(
    ctx: Context, handle: int, buf_b64: str | frame.Incoming, count: int | None = None
) -> dict[str, object]:
    """Writes the first `count` decoded bytes.  When only a part could be written the error says how much.

    A large text is written while it comes.  Should the front go in the middle, nobody is told how it went: what can be
    taken back is."""
    file = _find(ctx, handle)
    size, pieces = decoded(buf_b64)
    if count is None:
        count = size
    elif not 0 <= count <= size:
        raise CommandError(f"value '{count}' is invalid for argument count")
    rules = _table(ctx).rules
    if file.rule is not None and rules is not None:
        _check_growth(ctx, rules, file, file.rule, count)
    done, waiting = 0, len(file.pending)
    try:
        if file.writable and len(file.pending) + count < _table(ctx).buffer:
            for piece in pieces:
                file.pending += piece[: count - done]
                done = min(done + len(piece), count)
        else:
            _flush(file)
            for piece in pieces:
                left = memoryview(piece)[: count - done]
                while left:
                    written = os.write(file.fd, left)
                    done += written
                    left = left[written:]
    except OSError as e:
        part = f" ({done} of {count} bytes were written)" if done else ""
        raise CommandError(CommandError.from_errno("failed to write to file", e.errno or 0).desc + part) from None
    except frame.FrontGone:
        _take_back_write(file, done, waiting)
        ctx.log.warning(f"guest-file-write, handle: {handle}: broken off after {done} of {count} bytes")
        raise
    file.writes += 1
    file.bytes_written += count
    return {"count": count, "eof": False}


def guest_file_seek(ctx: Context, handle: int, offset: int, whence: int | str) -> dict[str, object]:
    """Moves the position; beyond the end is fine, before the start is not."""
    file = _find(ctx, handle)
    code = _WHENCE[whence] if isinstance(whence, str) else whence
    if code not in _WHENCE.values():
        raise CommandError(f"invalid whence code {whence}")
    try:
        _flush(file)
        position = os.lseek(file.fd, offset, code)
    except OSError as e:
        raise CommandError.from_errno("failed to seek file", e.errno or 0) from None
    return {"eof": False, "position": position}  # the order that the peer writes them in


def guest_file_flush(ctx: Context, handle: int) -> dict[str, object]:
    """Hands what waits to the kernel; as with the peer nothing is synced to the disk."""
    file = _find(ctx, handle)
    try:
        _flush(file)
    except OSError as e:
        raise CommandError.from_errno("failed to flush file", e.errno or 0) from None
    return {}


def _table(ctx: Context) -> Table:
    table = ctx.state.__dict__["files"]
    assert isinstance(table, Table)
    return table


def _find(ctx: Context, handle: int) -> OpenFile:
    """Raises CommandError, with more than the peer's words when the number is one that an earlier worker gave out: if the host
    did not close it, it was lost with that worker."""
    table = _table(ctx)
    file = table.files.get(handle)
    if file is None:
        text = f"handle '{handle}' has not been found"
        if FIRST <= handle < table.counter.start:
            text += ": it was given out by an earlier file worker, and lost with it if it was open"
        raise CommandError(text)
    return file


def _first_flags(flags: int, grant: Rule | None) -> int:
    """Those to open a file with that is still to be looked at: nothing is cut off, nor made where the rule does not say so."""
    if grant is None:
        return flags
    if "create" not in grant.all("access"):
        flags &= ~os.O_CREAT
    return flags & ~os.O_TRUNC


def _admit(ctx: Context, rules: FileRules, fd: int, name: bytes, flags: int, grant: Rule, *, new: bool) -> Rule:
    """The rule for what was opened, and then the truncation that waited for it.  Raises CommandError; a new file goes again."""
    access = flags & os.O_ACCMODE
    needs = (*(("read",) if access != os.O_WRONLY else ()), *(("write",) if access != os.O_RDONLY else ()))
    try:
        rule = rules.check(ctx, fd, needs, grant, new=new)
        if flags & os.O_TRUNC and not new:
            os.ftruncate(fd, 0)
    except CommandError:
        if new:
            _take_back(fd, name)
        raise
    except OSError as e:
        raise CommandError.from_errno("failed to truncate file", e.errno or 0) from None
    return rule


def _check_growth(ctx: Context, rules: FileRules, file: OpenFile, rule: Rule, count: int) -> None:
    """Raises CommandError when a write would reach beyond the rule's `max-size`."""
    try:
        at = os.fstat(file.fd).st_size if file.append else os.lseek(file.fd, 0, os.SEEK_CUR)
    except OSError:
        return  # the write fails too, and says why
    if at + len(file.pending) + count > int(rule.one("max-size")):
        reason = f"the file would be larger than {rule.one('max-size')} bytes"
        raise rules.refusal(ctx, "guest-file-write", rule, reason)


def _take_back(fd: int, name: bytes) -> None:
    """Remove a file that was made just now."""
    try:
        if os.path.samestat(os.lstat(name), os.fstat(fd)):
            os.unlink(name)
    except OSError:
        pass  # it stays, empty and with no permissions


def _open(name: bytes, flags: int) -> tuple[int, bool]:
    """The descriptor, and whether the file is new.  Two steps, because only the mode of a new file is ours to set."""
    if not flags & os.O_CREAT:
        return os.open(name, flags), False
    try:
        return os.open(name, flags | os.O_EXCL, 0), True
    except FileExistsError:
        return os.open(name, flags & ~os.O_CREAT), False


def _give_mode(fd: int, name: bytes, path: str, mode: str) -> None:
    """Sets a new file's mode whatever the umask; takes the file back when the file system will not."""
    try:
        os.fchmod(fd, _NEW_FILE_MODE)
    except OSError as e:
        _take_back(fd, name)
        failed = f"failed to set permission 0{_NEW_FILE_MODE:03o} on new file '{path}' (mode: '{mode}')"
        raise CommandError.from_errno(failed, e.errno or 0) from None


def _take_back_write(file: OpenFile, done: int, waiting: int) -> None:
    """The position is where it was, so that whoever repeats the write writes the same place; what is appended stays."""
    if len(file.pending) > waiting:
        del file.pending[waiting:]
    elif done and not file.append:
        try:
            os.lseek(file.fd, -done, os.SEEK_CUR)
        except OSError:
            pass  # a pipe


def _flush(file: OpenFile) -> None:
    """Writes what waits; what could not be written goes on waiting.  Raises OSError."""
    while file.pending:
        done = os.write(file.fd, file.pending)
        del file.pending[:done]


class _Reading:
    """A large read: how far it is."""

    __slots__ = ("_file", "_left", "count", "eof")

    def __init__(self, file: OpenFile, count: int) -> None:
        self._file = file
        self._left = count
        self.count = 0
        self.eof = False

    def first(self, view: memoryview) -> int:
        """Fill as much of the memory as there is to read.  Raises OSError when there is nothing but an error."""
        size, wanted = 0, min(len(view), self._left)
        while size < wanted and not self.eof:
            try:
                got = os.readv(self._file.fd, (view[size:wanted],))
            except OSError:
                if not size:
                    raise
                break  # told by the next read, if it still is so then
            size += got
            self.eof = not got
        self._left -= size
        self.count += size
        self._file.bytes_read += size
        return size

    def fill(self, view: memoryview) -> int:
        """The same for what comes after; an error is the end."""
        try:
            return self.first(view)
        except OSError:
            return 0

    def rest(self) -> dict[str, object]:
        return {"count": self.count, "eof": self.eof}


def _read_large(file: OpenFile, count: int) -> dict[str, object]:
    """The same through memory that the front can read.  Raises OSError."""
    reading = _Reading(file, count)
    size = reading.first(blob.window().view[: blob.SLOT])
    if size < blob.SLOT or size == count:
        return {"count": size, "buf-b64": blob.Kept(size), "eof": reading.eof}
    return {"buf-b64": blob.Flow(reading.fill, reading.rest)}


def _read(fd: int, count: int) -> tuple[bytes, bool]:
    """Up to `count` bytes and whether the end was met.  Raises OSError when there is nothing but an error.

    One read and no copy for a regular file; files of /proc, fifos and terminals give less at a time."""
    if count == 0:
        return b"", False
    data = os.read(fd, count)
    if not data or len(data) == count:
        return data, not data
    pieces = [data]
    left = count - len(data)
    eof = False
    while left and not eof:
        try:
            data = os.read(fd, min(left, _PIECE))
        except OSError:  # told by the next read, if it still is so then
            break
        if data:
            pieces.append(data)
            left -= len(data)
        else:
            eof = True
    return pieces[0] if len(pieces) == 1 else b"".join(pieces), eof
