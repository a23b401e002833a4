"""Where output goes that is too much for memory, and how an output is read back.

Guarantees: what is read back is exact, or marked where something of it is gone. Reading takes no lock,
changes nothing and keeps no descriptor open. The directory is readable by its user alone, and only the
process that made it removes it.
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
from array import array
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import NamedTuple

_STREAMS = ("stdout", "stderr")
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


class Loss(NamedTuple):
    """Bytes that were accepted and are gone. Offsets count every byte that was accepted."""

    start: int
    end: int
    why: str

    @property
    def mark(self) -> bytes:
        """What stands in their place."""
        return f"\n[arrea: {amount(self.end - self.start)} of output lost: {self.why}]\n".encode()


class Filed(NamedTuple):
    """What of an output is not in memory alone. Runs are lengths in turn: positive stdout, negative stderr.

    Attributes:
        end: Offset up to which all is in the file, or lost.
        size: Size of the file.
        losses: What is lost, in order.
        runs_start: Offset of the first byte that the runs in memory tell of; before it their file does.
        runs: How many runs that file has.
        runs_file_start: Offset of the first byte that it tells of.
    """

    end: int = 0
    size: int = 0
    losses: tuple[Loss, ...] = ()
    runs_start: int = 0
    runs: int = 0
    runs_file_start: int = 0

    def lost(self, end: int, why: str) -> Filed:
        """The same, without what was to be filed next, up to `end`."""
        losses, start = self.losses, self.end
        if start >= end:
            return self
        if losses and losses[-1].end == start:
            start, losses = losses[-1].start, losses[:-1]
        return self._replace(end=end, losses=(*losses, Loss(start, end, why)))


class Picture(NamedTuple):
    """An output at one moment: what was filed by then never changes."""

    start: int
    memory: bytearray
    filed: Filed
    path: str | None
    runs: array[int]

    def all(self) -> bytes:
        """Both streams."""
        pieces, losses = _pieces(self)
        return _joined(pieces, losses)

    def last(self, size: int) -> bytes:
        """The last bytes of both streams."""
        pieces, losses = _pieces(self, last=size)
        return _joined(pieces, losses)[-size:]

    def of(self, stream: int) -> bytes:
        """What came from stdout (0) or stderr (1)."""
        pieces, losses = _pieces(self)
        first, runs = _runs_of(self)
        if first:
            losses = [Loss(0, first, "its stream is not known, see output")] + [
                loss for loss in losses if loss.start >= first
            ]
        return _joined(_spans(pieces, first, runs, stream), losses)


def _pieces(picture: Picture, last: int | None = None) -> tuple[list[_Part], list[Loss]]:
    """What is left of the output, with its offsets, and what is not. Only the `last` bytes, if so asked."""
    memory = memoryview(picture.memory)
    wanted = 0 if last is None else picture.start + len(memory) - last
    pieces: list[_Part] = []
    losses = list(picture.filed.losses)
    try:
        if picture.filed.end and picture.path is not None:
            with open(picture.path, "rb", buffering=0) as file:
                at = 0
                for start, end in _filed_ranges(picture):
                    skipped = min(max(wanted - start, 0), end - start)
                    pieces.append(_read(file, at + skipped, start + skipped, end))
                    at += end - start
    except OSError as error:
        why = "its file is gone" if isinstance(error, FileNotFoundError) else why_not(error)
        pieces = []
        losses = [Loss(0, picture.start, why)] if picture.start else []
        return [(picture.start, memory)], losses
    return [*pieces, (picture.filed.end, memory[picture.filed.end - picture.start :])], losses


def _filed_ranges(picture: Picture) -> Iterator[tuple[int, int]]:
    start = 0
    for loss in picture.filed.losses:
        if start < loss.start:
            yield start, loss.start
        start = loss.end
    if start < picture.filed.end:
        yield start, picture.filed.end


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


def _runs_of(picture: Picture) -> tuple[int, array[int]]:
    """All runs that are known, and the offset that they begin at."""
    if not picture.filed.runs or picture.path is None:
        return picture.filed.runs_start, picture.runs
    filed = array("q")
    try:
        with open(runs_path(picture.path), "rb") as file:
            filed.fromfile(file, picture.filed.runs)
    except (OSError, EOFError):
        return picture.filed.runs_start, picture.runs
    return picture.filed.runs_file_start, filed + picture.runs


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


def _joined(parts: list[_Part], losses: list[Loss]) -> bytes:
    if losses:
        marks = [(loss.start, memoryview(loss.mark)) for loss in losses]
        parts = sorted([*parts, *marks], key=itemgetter(0))
    return b"".join(part for _, part in parts)


def texts(data: bytes, runs: list[list[int]]) -> list[tuple[str, str]]:
    """The text of each run. A character that another stream's run divides is shown where it ends."""
    decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in _STREAMS]
    told = []
    at = 0
    last = {stream: index for index, (stream, _) in enumerate(runs)}
    for index, (stream, length) in enumerate(runs):
        text = decoders[stream].decode(data[at : at + length], final=index == last[stream])
        at += length
        if text:
            told.append((_STREAMS[stream], text))
    return told


def continuation(data: bytes) -> int:
    """How many bytes at the beginning belong to a character that began before."""
    count = 0
    while count < min(3, len(data)) and data[count] & 0xC0 == 0x80:
        count += 1
    return count


def incomplete(data: bytes) -> int:
    """How many bytes at the end are the beginning of a character whose rest may follow."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-4:])
    return len(decoder.getstate()[0])


def amount(size: int) -> str:
    """A number of bytes, for people."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"


def why_not(error: OSError) -> str:
    """What the system says about it."""
    return error.strerror or str(error)


def runs_path(path: str) -> str:
    """The file of the runs beside an output's file."""
    return path + ".runs"


def remove_files(pid: int, path: str) -> None:
    """Removes both files of an output, in the process that made them."""
    if os.getpid() == pid:  # pragma: no branch - the other way in a forked child
        for each in (path, runs_path(path)):
            with contextlib.suppress(OSError):
                os.unlink(each)
