"""Look through the opcodes of a pickle before it is read: a few bytes of one can ask for gigabytes of memory.

What an honest pickle holds is bounded by its length: memo numbers count what was pickled before them, texts lie inside
of it. What breaks these bounds is refused, and nothing is built of it. Standard library only.
"""

from __future__ import annotations

import mmap
import pickletools
import zipfile
from pathlib import Path

# The random states of a rank are some 700 opcodes, a tensor 20: this is enough for thousands of each.
MOST_OPCODES = 4_000_000
LONGEST_NUMBER = 1024  # bytes of one whole number
MOST_COPIED = 1 << 30  # bytes: calls times the longest text, which each of them may copy
LEGACY_PICKLES = 5  # in a row, in the format before torch 1.6: magic number, version, system, content, storage keys

_CODES = {ord(code.code): code for code in pickletools.opcodes}
# Per opcode: bytes of its argument; negative: minus the bytes of the length that stands before it.
_FIXED = {number: code.arg.n if code.arg else 0 for number, code in _CODES.items() if not code.arg or code.arg.n >= 0}
_COUNTED = {
    number: {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(code.arg.n, 4)
    for number, code in _CODES.items()
    if code.arg and code.arg.n < pickletools.UP_TO_NEWLINE
}
_LINES = {
    number: 2 if code.name in ("GLOBAL", "INST") else 1
    for number, code in _CODES.items()
    if code.arg and code.arg.n == -1
}
_NAMES = {code.name: ord(code.code) for code in pickletools.opcodes}
_STOP, _PUT, _LONG4 = _NAMES["STOP"], _NAMES["PUT"], _NAMES["LONG4"]
_BINARY_PUTS = {_NAMES["BINPUT"], _NAMES["LONG_BINPUT"]}
_CALLS = {_NAMES[name] for name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "BUILD")}


def check_pickle(data: bytes | mmap.mmap, start: int = 0) -> int:
    """Return where the pickle that begins at ``start`` ends; raise ValueError when it breaks the bounds above."""
    place, end, count, calls, longest, code = start, len(data), 0, 0, 0, -1
    while code != _STOP:
        if place >= end:
            raise ValueError("a pickle that ends in the middle")
        code = data[place]
        count += 1
        argument = place + 1
        if code in _FIXED:
            place = argument + _FIXED[code]
            if code in _BINARY_PUTS and int.from_bytes(data[argument:place], "little") >= count:
                raise ValueError("a memo number that nothing was pickled for")
        elif code in _COUNTED:
            place = _end_of_text(data, argument, code)
            longest = max(longest, place - argument)
        elif code in _LINES:
            place = _end_of_lines(data, argument, code, count)
            longest = max(longest, place - argument)
        else:
            raise ValueError(f"an unknown opcode {code}")
        calls += code in _CALLS
    if place > end or count > MOST_OPCODES or calls * longest > MOST_COPIED:
        raise ValueError(f"a pickle that is cut off, has more than {MOST_OPCODES:,} opcodes, or calls with long texts")
    return place


def _end_of_text(data: bytes | mmap.mmap, place: int, code: int) -> int:
    text = place + _COUNTED[code]
    length = int.from_bytes(data[place:text], "little")
    if length > len(data) - text or (code == _LONG4 and length > LONGEST_NUMBER):
        raise ValueError("a text or number longer than the pickle")
    return text + length


def _end_of_lines(data: bytes | mmap.mmap, place: int, code: int, count: int) -> int:
    start = place
    for _ in range(_LINES[code]):
        place = data.find(b"\n", place) + 1
        if not place:
            raise ValueError("a pickle that ends in the middle")
    if code == _PUT and not (data[start : place - 1].isdigit() and int(data[start : place - 1]) < count):
        raise ValueError("a memo number that nothing was pickled for")
    return place


def check_pickles(path: Path, *, archive: bool) -> bool:
    """Check the pickles of a file of ``torch.save``; return whether they name bytearray.

    That makes zeros of any number; torch's own reader lets it. Raises ValueError for a pickle out of bounds.
    """
    if not archive:
        # What follows the pickles are the numbers of the tensors.
        place = 0
        with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for _ in range(LEGACY_PICKLES):
                place = check_pickle(mapped, place)
            return mapped.find(b"bytearray", 0, place) >= 0
    found = False
    with zipfile.ZipFile(path) as file:
        for entry in file.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:  # torch never does; a few bytes could become gigabytes
                raise ValueError("a compressed archive")
            if entry.filename.endswith(".pkl"):
                if not entry.CRC:  # written without, which torch can be told to do
                    entry.CRC = None  # type: ignore[assignment]  # nothing to compare with
                data = file.read(entry)
                check_pickle(data)
                found |= b"bytearray" in data
    return found
