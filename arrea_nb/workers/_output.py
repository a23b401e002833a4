"""What one attempt printed: its end in memory, the rest in a file of the kernel's spool directory.

Guarantees: at most `memory_limit` bytes are held in memory, and a bounded note of which stream they came
from; `read` still gives all of it. Nothing is lost in silence: what was dropped or could not be kept is
marked in its place, and the job that printed it goes on. No descriptor is kept open. The files go when
the Output does, and only the process that made them removes them.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import os
import shutil
import stat
import tempfile
import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import NamedTuple

_STREAMS = ("stdout", "stderr")
# How many changes between the two streams are kept in memory, at 8 bytes each.
_MOST_RUNS = 32768
_FLAGS = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

_Part = tuple[int, memoryview]  # some of the output, and its offset


class Spool:
    """The directory of a kernel's spooled output. Made when first needed, readable by its user alone.

    Args:
        kernel_id: What the directory is named after.
        watch: Called before the directory is used; sees to it that somebody removes it after the kernel.
    """

    def __init__(self, kernel_id: str, watch: Callable[[], object] = lambda: None) -> None:
        self._watch = watch
        self.directory = os.path.join(tempfile.gettempdir(), f"arrea-{kernel_id}")
        self._numbers = itertools.count(1)
        self._pid = os.getpid()

    def new_path(self) -> str:
        """A path in the directory that nobody has used; the file is not made yet.

        Raises:
            OSError: If the directory cannot be made.
        """
        self._watch()
        self.make()
        return os.path.join(self.directory, f"{os.getpid()}-{next(self._numbers)}.out")

    def make(self) -> None:
        """Makes the directory, if it is not there.

        Raises:
            OSError: If it cannot be made, or is not ours.
        """
        try:
            os.mkdir(self.directory, 0o700)
        except FileExistsError:
            found = os.lstat(self.directory)
            private = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
            if not stat.S_ISDIR(found.st_mode) or not private:
                raise PermissionError(f"{self.directory} is not a private directory of ours") from None

    def remove(self) -> None:
        """Deletes the directory and what is in it; in a forked child nothing, for it is its parent's."""
        if os.getpid() == self._pid:  # pragma: no branch - the other way in a forked child
            shutil.rmtree(self.directory, ignore_errors=True)


class _Loss(NamedTuple):
    """Bytes that were accepted and are gone. Offsets count every byte that was accepted."""

    start: int
    end: int
    why: str

    @property
    def mark(self) -> bytes:
        return f"\n[arrea: {_amount(self.end - self.start)} of output lost: {self.why}]\n".encode()


class _Picture(NamedTuple):
    """The state at one moment, to be read without the lock: what was filed by then never changes."""

    start: int
    memory: bytes
    filed: int
    path: str | None
    losses: tuple[_Loss, ...]
    runs: array[int]
    runs_start: int
    runs_filed: int
    runs_file_start: int


class Output:
    """What one attempt printed to both streams, in the order in which it was read.

    Written by the thread that runs the attempt, read by any.

    Args:
        spool: Where the rest goes once there is too much for memory.
        memory_limit: How much is held in memory, in bytes.
        max_bytes: How much is kept at all, in bytes; what comes after it is dropped.
    """

    # Defaults stand on the class: most jobs of a large batch print a line or nothing.
    _closed = False
    _filed = 0  # offset up to which all is in the file, or lost
    _file_size = 0
    _file_path: str | None = None
    _losses: tuple[_Loss, ...] = ()
    _runs_start = 0  # offset of the first byte that `_runs` tells of; before it the file does
    _runs_filed = 0  # how many runs the file has, and the offset of the first
    _runs_file_start = 0
    _cut: tuple[int, ...] = ()  # the streams of which something was dropped; the first bears the mark

    def __init__(self, spool: Spool, memory_limit: int, max_bytes: int) -> None:
        self._spool = spool
        self._memory_limit = memory_limit
        self._max_bytes = max_bytes
        # Guards everything below; `_end`, one object, may be looked at without it. Held while the file is
        # written, never while it is read.
        self._lock = threading.Lock()
        self._end: tuple[int, bytearray] = (0, bytearray())  # the last bytes, and the offset of the first
        self._runs = array("q")  # lengths in turn: positive for stdout, negative for stderr

    def __repr__(self) -> str:
        return f"<Output {_amount(self.size)}{' closed' if self._closed else ''}>"

    @property
    def size(self) -> int:
        """How many bytes were accepted, the mark of what was dropped included."""
        start, memory = self._end
        return start + len(memory)

    @property
    def path(self) -> str | None:
        """The file with both streams, once there was too much for memory. Its end may be in memory."""
        return self._file_path if self._file_size else None

    def write(self, stream: int, data: bytes) -> None:
        """Takes what was printed to stdout (0) or stderr (1); never raises for want of space."""
        if not data:
            return
        with self._lock:
            if self._closed:
                return
            room = self._max_bytes - self.size
            if not self._cut and len(data) <= room:
                self._take(stream, data)
                return
            if not self._cut:
                self._cut = (stream,)
                self._take(stream, data[: max(room, 0)] + self._cut_mark())
            elif stream not in self._cut:
                self._cut = (*self._cut, stream)

    def forget(self) -> None:
        """In a forked child: the lock may have been held by a thread that is not here to release it."""
        self._lock = threading.Lock()  # pragma: no cover - runs in a forked child

    def close(self) -> None:
        """Nothing more is taken; what still comes is dropped."""
        with self._lock:
            self._closed = True

    def read(self, stream: int | None = None) -> bytes:
        """All of stdout (0), of stderr (1), or of both in the order in which they were read."""
        with self._lock:
            picture = self._picture()
            cut = self._cut
        pieces, losses = _pieces(picture)
        if stream is None:
            return _joined(pieces, losses)
        first, runs = _runs_of(picture)
        if first:
            losses = [_Loss(0, first, "its stream is not known, see output")] + [
                loss for loss in losses if loss.start >= first
            ]
        text = _joined(_spans(pieces, first, runs, stream), losses)
        # The mark itself was written once, to the stream that was cut first.
        return text + self._cut_mark() if stream in cut[1:] else text

    def tail(self, size: int) -> bytes:
        """The last bytes of both streams, as they were read."""
        if size <= 0:
            return b""
        start, memory = self._end
        if size <= len(memory) or start == 0:
            with self._lock:
                start, memory = self._end
                if size <= len(memory) or start == 0:  # pragma: no branch - it was written to in between
                    return bytes(memory[-size:])
        with self._lock:
            picture = self._picture()
        pieces, losses = _pieces(picture, last=size)
        return _joined(pieces, losses)[-size:]

    def head(self, size: int) -> tuple[list[tuple[str, str]], int]:
        """What was printed first, at most `size` bytes of it, as far as it can be read.

        Returns:
            Pairs of stream and text, and the offset after them. A character that would be cut is left out.
        """
        with self._lock:
            start, memory = self._end
            data = bytes(memory[:size]) if start == 0 else None
            path, losses, runs_start = self._file_path, self._losses, self._runs_start
            runs = [] if runs_start else self._runs_from(0)
        if data is None:
            most = min(size, losses[0].start) if losses else size
            try:
                with open(path or "", "rb") as file:
                    data = file.read(most)
            except OSError:
                return [], 0
        data = data[: len(data) - _incomplete(data)]
        told = []
        room = len(data)
        # With so many changes of stream that the first are filed, all of it counts as stdout.
        for stream, length in runs or [[0, room]]:  # pragma: no branch - they tell of all of it
            told.append([stream, min(length, room)])
            room -= told[-1][1]
            if not room:
                break
        return _texts(data, told), len(data)

    def since(self, offset: int, limit: int) -> tuple[list[tuple[str, str]], int, int]:
        """What was printed since `offset`, of that the last `limit` bytes, as far as it is in memory.

        Returns:
            Pairs of stream and text, the offset to go on from, and how many bytes were left out. A
            character of which only a part has arrived is left for the next time, unless this is the end.
        """
        with self._lock:
            start, memory = self._end
            end = start + len(memory)
            first = max(offset, start, self._runs_start, end - max(limit, 0))
            if offset >= end or first >= end:
                return [], end, max(end - offset, 0)
            data = bytes(memory[first - start :])
            runs = self._runs_from(first)
            closed = self._closed
        if first > offset:
            beheaded = min(_continuation(data), runs[0][1])
            data, first = data[beheaded:], first + beheaded
            runs[0][1] -= beheaded
        held = 0 if closed else _incomplete(data[-runs[-1][1] :])
        runs[-1][1] -= held
        return _texts(data, runs), end - held, first - offset

    def _take(self, stream: int, data: bytes) -> None:
        memory = self._end[1]
        if len(memory) + len(data) <= self._memory_limit:
            memory += data
        else:
            self._spill(data)
        length = -len(data) if stream else len(data)
        runs = self._runs
        if runs and (runs[-1] < 0) == (length < 0):
            runs[-1] += length
        else:
            runs.append(length)
            if len(runs) > _MOST_RUNS:
                self._spill_runs()

    def _spill(self, data: bytes) -> None:
        """Files all that is in memory and `data`, and keeps the end of it in memory."""
        start, memory = self._end
        end = start + len(memory) + len(data)
        pending = bytes(memory[self._filed - start :])
        keep = self._memory_limit // 4
        why = self._file((pending, data))
        kept = data[-keep:] if keep else b""
        if len(data) < keep:
            kept = bytes(memory[-(keep - len(data)) :]) + data
        if why is not None:
            lost_until = max(self._filed, end - len(kept))
            self._lose(self._filed, lost_until, why)
            self._filed = lost_until
        # One assignment: an exception that stops a callable can come between any two.
        self._end = (end - len(kept), bytearray(kept))

    def _file(self, parts: Iterable[bytes]) -> str | None:
        """Appends to the file as far as that goes. Returns None, or why it went no further."""
        try:
            descriptor = self._open(self._own_path())
        except OSError as error:
            return _why(error)
        try:
            if os.fstat(descriptor).st_size < self._file_size:
                self._losses = ()
                self._lose(0, self._filed, "its file was removed")
                os.ftruncate(descriptor, 0)
                self._file_size = 0
            for part in parts:
                view = memoryview(part)
                while view:
                    # At a position: done twice it changes nothing.
                    written = _write_at(descriptor, self._file_size, view)
                    self._file_size += written
                    self._filed += written
                    view = view[written:]
        except OSError as error:
            return _why(error)
        finally:
            os.close(descriptor)
        return None

    def _open(self, path: str) -> int:
        try:
            return os.open(path, _FLAGS, 0o600)
        except FileNotFoundError:
            self._spool.make()
            return os.open(path, _FLAGS, 0o600)

    def _lose(self, start: int, end: int, why: str) -> None:
        if start >= end:
            return
        losses = self._losses
        if losses and losses[-1].end == start:
            start, losses = losses[-1].start, losses[:-1]
        self._losses = (*losses, _Loss(start, end, why))

    def _spill_runs(self) -> None:
        """Files the older half of the runs; the newer, which `since` wants, stay."""
        older = self._runs[: _MOST_RUNS // 2]
        start = self._runs_start
        until = start + sum(map(abs, older))
        try:
            self._file_runs(older)
        except OSError:
            # Which stream each of these bytes came from is not known any more.
            self._runs_filed, self._runs_file_start = 0, until
        self._runs_start = until
        del self._runs[: len(older)]

    def _file_runs(self, runs: array[int]) -> None:
        descriptor = self._open(_runs_path(self._own_path()))
        try:
            at = self._runs_filed * runs.itemsize
            if os.fstat(descriptor).st_size < at:
                at, self._runs_filed, self._runs_file_start = 0, 0, self._runs_start
            view = memoryview(runs).cast("B")
            while view:
                written = _write_at(descriptor, at, view)
                at += written
                view = view[written:]
        finally:
            os.close(descriptor)
        self._runs_filed += len(runs)

    def _own_path(self) -> str:
        if self._file_path is None:
            path = self._spool.new_path()
            weakref.finalize(self, _unlink, os.getpid(), path).atexit = False
            self._file_path = path
        return self._file_path

    def _cut_mark(self) -> bytes:
        return f"\n[arrea: output past {_amount(self._max_bytes)} was dropped]\n".encode()

    def _picture(self) -> _Picture:
        start, memory = self._end
        return _Picture(
            start,
            bytes(memory),
            self._filed,
            self._file_path,
            self._losses,
            self._runs[:],
            self._runs_start,
            self._runs_filed,
            self._runs_file_start,
        )

    def _runs_from(self, offset: int) -> list[list[int]]:
        """Stream and length of each run from `offset` on, which is not before `_runs_start`."""
        found = []
        end = self.size
        for run in reversed(self._runs):
            length = min(abs(run), end - offset)
            if length <= 0:
                break
            found.append([int(run < 0), length])
            end -= length
        found.reverse()
        return found


def _pieces(picture: _Picture, last: int | None = None) -> tuple[list[_Part], list[_Loss]]:
    """What is left of the output, with its offsets, and what is not. Only the `last` bytes, if so asked."""
    memory = memoryview(picture.memory)
    wanted = 0 if last is None else picture.start + len(memory) - last
    pieces: list[_Part] = []
    losses = list(picture.losses)
    try:
        if picture.filed and picture.path is not None:
            with open(picture.path, "rb", buffering=0) as file:
                at = 0
                for start, end in _filed_ranges(picture):
                    skipped = min(max(wanted - start, 0), end - start)
                    pieces.append(_read(file, at + skipped, start + skipped, end))
                    at += end - start
    except OSError as error:
        why = "its file is gone" if isinstance(error, FileNotFoundError) else _why(error)
        pieces = []
        losses = [_Loss(0, picture.start, why)] if picture.start else []
        return [(picture.start, memory)], losses
    return [*pieces, (picture.filed, memory[picture.filed - picture.start :])], losses


def _filed_ranges(picture: _Picture) -> Iterator[tuple[int, int]]:
    start = 0
    for loss in picture.losses:
        if start < loss.start:
            yield start, loss.start
        start = loss.end
    if start < picture.filed:
        yield start, picture.filed


def _read(file: io.FileIO, at: int, start: int, end: int) -> _Part:
    data = bytearray(end - start)
    view = memoryview(data)
    file.seek(at)
    while view:
        count = file.readinto(view)
        if not count:
            raise FileNotFoundError("shorter than what was written")
        view = view[count:]
    return start, memoryview(data)


def _runs_of(picture: _Picture) -> tuple[int, array[int]]:
    """All runs that are known, and the offset that they begin at."""
    if not picture.runs_filed or picture.path is None:
        return picture.runs_start, picture.runs
    filed = array("q")
    try:
        with open(_runs_path(picture.path), "rb") as file:
            filed.fromfile(file, picture.runs_filed)
    except (OSError, EOFError):
        return picture.runs_start, picture.runs
    return picture.runs_file_start, filed + picture.runs


def _spans(pieces: list[_Part], at: int, runs: array[int], stream: int) -> list[_Part]:
    """The parts of the pieces that came from `stream`; `runs` begin at offset `at`."""
    spans: list[_Part] = []
    pending = iter(pieces)
    start, piece = next(pending)
    for run in runs:
        run_end = at + abs(run)
        while True:
            first, last = max(at, start), min(run_end, start + len(piece))
            if first < last and (run < 0) == bool(stream):
                spans.append((first, piece[first - start : last - start]))
            if start + len(piece) > run_end:
                break
            following = next(pending, None)
            if following is None:
                return spans
            start, piece = following
        at = run_end
    return spans


def _joined(parts: list[_Part], losses: list[_Loss]) -> bytes:
    if losses:
        marks = [(loss.start, memoryview(loss.mark)) for loss in losses]
        parts = sorted([*parts, *marks], key=itemgetter(0))
    return b"".join(part for _, part in parts)


def _texts(data: bytes, runs: list[list[int]]) -> list[tuple[str, str]]:
    """The text of each run. A character that another stream's run divides is shown where it ends."""
    decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in _STREAMS]
    texts = []
    at = 0
    last = {stream: index for index, (stream, _) in enumerate(runs)}
    for index, (stream, length) in enumerate(runs):
        text = decoders[stream].decode(data[at : at + length], final=index == last[stream])
        at += length
        if text:
            texts.append((_STREAMS[stream], text))
    return texts


def _continuation(data: bytes) -> int:
    """How many bytes at the beginning belong to a character that began before."""
    count = 0
    while count < min(3, len(data)) and data[count] & 0xC0 == 0x80:
        count += 1
    return count


def _incomplete(data: bytes) -> int:
    """How many bytes at the end are the beginning of a character whose rest may follow."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-4:])
    return len(decoder.getstate()[0])


def _write_at(descriptor: int, at: int, data: memoryview) -> int:
    os.lseek(descriptor, at, os.SEEK_SET)
    return os.write(descriptor, data)


def _amount(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _runs_path(path: str) -> str:
    return path + ".runs"


def _unlink(pid: int, path: str) -> None:
    if os.getpid() == pid:  # pragma: no branch - the other way in a forked child
        for each in (path, _runs_path(path)):
            with contextlib.suppress(OSError):
                os.unlink(each)
