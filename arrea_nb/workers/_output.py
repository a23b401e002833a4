"""What one attempt printed: its end in memory, the rest in a file of the kernel's spool directory.

Guarantees: at most `memory_limit` bytes are held in memory, and a bounded note of which stream they came
from; `read` still gives all of it. Nothing is lost in silence: what was dropped or could not be kept is
marked in its place, and the job that printed it goes on. Reading takes no lock, and gives what was there
between two writes. A finaliser or a signal handler may read and write in the middle of a write of its own
thread: what it writes comes after that. No descriptor is kept open. The files go when the Output does, and
only the process that made them removes them.
"""

from __future__ import annotations

import os
import threading
import weakref
from array import array
from collections.abc import Iterable

from arrea_nb.workers._spool import (
    Filed,
    Picture,
    Spool,
    amount,
    continuation,
    incomplete,
    remove_files,
    runs_path,
    texts,
    why_not,
)

__all__ = ["Output", "Spool"]

# How many changes between the two streams are kept in memory, at 8 bytes each.
_MOST_RUNS = 32768
_FLAGS = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_NOTHING_FILED = Filed()
_NO_RUNS = array("q")

# One moment: the offset of the first byte in memory; the memory, and how much of it counts; the runs that
# have ended, and how many of them count; the length of the run that goes on; what is filed.
_State = tuple[int, bytearray, int, "array[int]", int, int, Filed]


class Output:
    """What one attempt printed to both streams, in the order in which it was read.

    Written and read by any thread. A write is made ready beside what there is and then takes its place in one
    assignment: bytes and runs are only added behind those that count, or copied to new objects. Who looks
    meanwhile, or after a write that was ended by an exception, sees what was there before it.

    Args:
        spool: Where the rest goes once there is too much for memory.
        memory_limit: How much is held in memory, in bytes.
        max_bytes: How much is kept at all, in bytes; what comes after it is dropped.
    """

    # Defaults stand on the class: most jobs of a large batch print a line or nothing.
    _closed = False
    _file_path: str | None = None
    _cut: tuple[int, ...] = ()  # the streams of which something was dropped; the first bears the mark

    def __init__(self, spool: Spool, memory_limit: int, max_bytes: int) -> None:
        self._spool = spool
        self._memory_limit = memory_limit
        self._max_bytes = max_bytes
        # Held for one write, also while the file is written; readers need none. A write that comes in the
        # middle of another, in the same thread, is left in `_later`.
        self._lock = threading.RLock()
        self._later: list[tuple[int, bytes]] = []
        self._state: _State = (0, bytearray(), 0, _NO_RUNS, 0, 0, _NOTHING_FILED)

    def __repr__(self) -> str:
        return f"<Output {amount(self.size)}{' closed' if self._closed else ''}>"

    @property
    def size(self) -> int:
        """How many bytes were accepted, the mark of what was dropped included."""
        state = self._state
        return state[0] + state[2]

    @property
    def path(self) -> str | None:
        """The file with both streams, once there was too much for memory. Its end may be in memory."""
        return self._file_path if self._state[-1].size else None

    def write(self, stream: int, data: bytes) -> None:
        """Takes what was printed to stdout (0) or stderr (1); never raises for want of space."""
        if not data:
            return
        if self._lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - Condition asks it as well
            # A finaliser, or a signal handler: the write in whose middle it came goes on with this.
            self._later.append((stream, data))
            return
        with self._lock:
            if self._later:
                self._catch_up()
            self._accept(stream, data)
        while self._later:
            with self._lock:
                self._catch_up()

    def forget(self) -> None:
        """In a forked child: the lock may have been held by a thread that is not here to release it."""
        self._lock = threading.RLock()  # pragma: no cover - runs in a forked child

    def close(self) -> None:
        """Nothing more is taken; what still comes is dropped."""
        with self._lock:
            self._closed = True

    def reopen(self) -> None:
        """More comes after all: its policy is asked, and prints."""
        with self._lock:
            self._closed = False

    def read(self, stream: int | None = None) -> bytes:
        """All of stdout (0), of stderr (1), or of both in the order in which they were read."""
        cut = self._cut  # before the picture: what was dropped came after it
        picture = self._picture()
        if stream is None:
            return picture.all()
        text = picture.of(stream)
        # The mark itself was written once, to the stream that was cut first.
        return text + self._cut_mark() if stream in cut[1:] else text

    def tail(self, size: int) -> bytes:
        """The last bytes of both streams, as they were read."""
        if size <= 0:
            return b""
        start, memory, held = self._state[:3]
        if size <= held or start == 0:
            return bytes(memory[max(held - size, 0) : held])
        return self._picture().last(size)

    def head(self, size: int) -> tuple[list[tuple[str, str]], int]:
        """What was printed first, at most `size` bytes of it, as far as it can be read.

        Returns:
            Pairs of stream and text, and the offset after them. A character that would be cut is left out.
        """
        state = self._state
        start, memory, held, *_, filed = state
        if start == 0:
            data = bytes(memory[: min(size, held)])
        else:
            most = min(size, filed.losses[0].start) if filed.losses else size
            try:
                with open(self._file_path or "", "rb") as file:
                    data = file.read(most)
            except OSError:
                return [], 0
        data = data[: len(data) - incomplete(data)]
        told = []
        room = len(data)
        # With so many changes of stream that the first are filed, all of it counts as stdout.
        for stream, length in [[0, room]] if filed.runs_start else _runs_from(state, 0):
            told.append([stream, min(length, room)])
            room -= told[-1][1]
            if not room:
                break
        return texts(data, told), len(data)

    def since(self, offset: int, limit: int) -> tuple[list[tuple[str, str]], int, int]:
        """What was printed since `offset`, of that the last `limit` bytes, as far as it is in memory.

        Returns:
            Pairs of stream and text, the offset to go on from, and how many bytes were left out. A
            character of which only a part has arrived is left for the next time, unless this is the end.
        """
        closed = self._closed  # before the state: nothing comes after it
        state = self._state
        start, memory, held, *_, filed = state
        end = start + held
        first = max(offset, start, filed.runs_start, end - max(limit, 0))
        if offset >= end or first >= end:
            return [], end, max(end - offset, 0)
        data = bytes(memory[first - start : held])
        runs = _runs_from(state, first)
        if first > offset:
            beheaded = min(continuation(data), runs[0][1])
            data, first = data[beheaded:], first + beheaded
            runs[0][1] -= beheaded
        kept_back = 0 if closed else incomplete(data[-runs[-1][1] :])
        runs[-1][1] -= kept_back
        return texts(data, runs), end - kept_back, first - offset

    def _catch_up(self) -> None:
        while self._later:
            self._accept(*self._later.pop(0))

    def _accept(self, stream: int, data: bytes) -> None:
        if self._closed:
            return
        start, memory, held, runs, count, run, filed = self._state
        if self._cut or len(data) > self._max_bytes - start - held:
            data = self._cut_off(stream, data)
            if not data:
                return
        length = -len(data) if stream else len(data)
        if not run or (run < 0) == (length < 0):
            run += length
        else:
            if not count:
                runs = array("q")
            elif len(runs) > count:
                del runs[count:]
            runs.append(run)
            count += 1
            run = length
            if count >= _MOST_RUNS:
                runs, filed = self._spill_runs(runs, filed)
                count = len(runs)
        if len(memory) > held:
            del memory[held:]
        if held + len(data) <= self._memory_limit:
            memory += data
        else:
            start, memory, filed = self._spill(data, start, memory, filed)
        self._state = (start, memory, len(memory), runs, count, run, filed)

    def _cut_off(self, stream: int, data: bytes) -> bytes:
        """What of it is kept, once not all of it can be."""
        if not self._cut:
            self._cut = (stream,)
            return data[: max(self._max_bytes - self.size, 0)] + self._cut_mark()
        if stream not in self._cut:
            self._cut = (*self._cut, stream)
        return b""

    def _spill(
        self, data: bytes, start: int, memory: bytearray, filed: Filed
    ) -> tuple[int, bytearray, Filed]:
        """Files all that is in memory and `data`, and keeps the end of it in memory."""
        end = start + len(memory) + len(data)
        pending = bytes(memory[filed.end - start :])
        keep = self._memory_limit // 4
        filed, why = self._file((pending, data), filed)
        kept = data[-keep:] if keep else b""
        if len(data) < keep:
            kept = bytes(memory[-(keep - len(data)) :]) + data
        if why is not None:
            filed = filed.lost(max(filed.end, end - len(kept)), why)
        return end - len(kept), bytearray(kept), filed

    def _file(self, parts: Iterable[bytes], filed: Filed) -> tuple[Filed, str | None]:
        """Appends to the file as far as that goes. Returns what is filed then, and why it went no further."""
        try:
            descriptor = self._open(self._own_path())
        except OSError as error:
            return filed, why_not(error)
        end, size = filed.end, filed.size
        try:
            if os.fstat(descriptor).st_size < size:
                filed = Filed(0, 0, (), *filed[3:]).lost(end, "its file was removed")
                os.ftruncate(descriptor, 0)
                size = 0
            for part in parts:
                view = memoryview(part)
                while view:
                    # At a position: done twice it changes nothing.
                    written = _write_at(descriptor, size, view)
                    size += written
                    end += written
                    view = view[written:]
            why = None
        except OSError as error:
            why = why_not(error)
        finally:
            os.close(descriptor)
        return filed._replace(end=end, size=size), why

    def _open(self, path: str) -> int:
        try:
            return os.open(path, _FLAGS, 0o600)
        except FileNotFoundError:
            self._spool.make()
            return os.open(path, _FLAGS, 0o600)

    def _spill_runs(self, runs: array[int], filed: Filed) -> tuple[array[int], Filed]:
        """Files the older half of the runs; the newer, which `since` wants, stay."""
        older = runs[: _MOST_RUNS // 2]
        until = filed.runs_start + sum(map(abs, older))
        try:
            filed = self._file_runs(older, filed)
        except OSError:
            # Which stream each of these bytes came from is not known any more.
            filed = filed._replace(runs=0, runs_file_start=until)
        return runs[len(older) :], filed._replace(runs_start=until)

    def _file_runs(self, runs: array[int], filed: Filed) -> Filed:
        descriptor = self._open(runs_path(self._own_path()))
        try:
            at = filed.runs * runs.itemsize
            if os.fstat(descriptor).st_size < at:
                at, filed = 0, filed._replace(runs=0, runs_file_start=filed.runs_start)
            view = memoryview(runs).cast("B")
            while view:
                written = _write_at(descriptor, at, view)
                at += written
                view = view[written:]
        finally:
            os.close(descriptor)
        return filed._replace(runs=filed.runs + len(runs))

    def _own_path(self) -> str:
        if self._file_path is None:
            path = self._spool.new_path()
            weakref.finalize(self, remove_files, os.getpid(), path).atexit = False
            self._file_path = path
        return self._file_path

    def _cut_mark(self) -> bytes:
        return f"\n[arrea: output past {amount(self._max_bytes)} was dropped]\n".encode()

    def _picture(self) -> Picture:
        start, memory, held, ended, count, run, filed = self._state
        runs = ended[:count]
        if run:
            runs.append(run)
        return Picture(start, memory[:held], filed, self._file_path, runs)


def _runs_from(state: _State, offset: int) -> list[list[int]]:
    """Stream and length of each run from `offset` on, which is not before the first run in memory."""
    start, _, held, runs, count, going_on, _ = state
    found = []
    end = start + held
    recent = runs[max(count - (end - offset), 0) : count]  # each has a byte at least
    recent.append(going_on)
    for run in reversed(recent):
        length = min(abs(run), end - offset)
        if length <= 0:
            break
        found.append([int(run < 0), length])
        end -= length
    found.reverse()
    return found


def _write_at(descriptor: int, at: int, data: memoryview) -> int:
    os.lseek(descriptor, at, os.SEEK_SET)
    return os.write(descriptor, data)
