"""Damage files as disks, copies, editors and other programs do: bytes, lines, JSON values, whole files.

A set of files is ``{name: content}``. Everything is drawn from one ``random.Random``, so that a seed, or Hypothesis,
gives the same damage again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Files = dict[str, bytes]

MARK = "@@odd@@"  # stands for a value that ``json.dumps`` cannot write
ODD_VALUES = [
    "null", "true", "false", "0", "-1", "1", "2", "1.5", "-0.0", "1e999", "-1e999", "NaN", "Infinity", "1e-320",
    "1180591620717411303424", "2147483648", "4294967295", "9223372036854775807", "1000000000", "9" * 5000, '""', '" "',
    '"x"', '"-1"', '"1"', '"true"', '"\\ud800"', '"\\u0000"', '"\\u2028"', '"\\u202e\\u05d0"', '"../../x"', '"/"',
    '"%s{}$(x)"', '"[MASK]"', "[]", "{}", "[null]", "[1]", '["x"]', "[[]]", '{"a": 1}', '{"": null}',
    '"' + "a" * 70000 + '"',
    "[" * 3000 + "]" * 3000, "[" * 100_000, '{"a":' * 20_000, "", "undefined", "0x10", "01", "'x'", '"\\x"',
]  # fmt: skip
ODD_TEXTS = [
    "\ufeff", "\0", "\r", "\n", "\n\n", "\u2028", "\u0085", "\x0c", "\x1c", "\t", "\t\t\t", '"', "'", "\\",
    ",", ", ,", "|", "#",
    "[MASK]", "[gMASK]", "<|endofpiece|>", "<blank>", "\u202e", "\u200b", "\U0001f469\u200d\U0001f4bb",
    "e\u0301\u0301\u0301", "\U000e0001",
    "\ufdd0", "\ufffd", "½", "١٢", "²", "NaN", "null", "-1", "9" * 400, "1e999", "0x1F", " ", "\u3000",
    "A" * 140_000, "{", "}", "[", "]",
]  # fmt: skip
ODD_BYTES = [
    b"\xff",
    b"\xfe\xff",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\x80",
    b"\xe2\x80",
    b"\x1f\x8b\x08",
    b"PK\x03\x04",
]


def damaged(files: Files, generator: random.Random, *, other: Files | None = None) -> tuple[Files, str]:
    """Return the files with one or two pieces of damage, and what was done.

    ``other`` is the same set of another save, whose files may stand in for these.
    """
    files, said = dict(files), []
    for _ in range(1 if generator.random() < 0.8 else 2):
        name = generator.choice(sorted(files)) if files else ""
        if not name:
            break
        if generator.random() < 0.08:
            said.append(_whole_file(files, name, generator, other or {}))
            continue
        ways = [_bytes]
        if _is_text(files[name]):
            ways += [_text, _lines]
            if files[name].lstrip()[:1] in (b"{", b"["):
                ways += [_json, _json, _json]
        way = generator.choice(ways)
        files[name], what = way(files[name], generator)
        said.append(f"{name}: {what}")
    return files, "; ".join(said)


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode("utf-8")
    except UnicodeDecodeError:
        return False


def _whole_file(files: Files, name: str, generator: random.Random, other: Files) -> str:
    kind = generator.choice(["missing", "empty", "swapped", "of another save", "of another save", "copied over"])
    second = generator.choice(sorted(files))
    if kind == "of another save" and name in other:
        files[name] = other[name]
    elif kind == "swapped":
        files[name], files[second] = files[second], files[name]
        return f"{name} and {second} swapped"
    elif kind == "copied over":
        files[name] = files[second]
        return f"{second} copied over {name}"
    elif kind == "empty":
        files[name] = b""
    else:
        kind = "missing"
        del files[name]
    return f"{name} {kind}"


def _place(data: bytes, generator: random.Random) -> tuple[int, int]:
    """Return the beginning and the end of a run of bytes; headers and ends are drawn more often."""
    size = len(data)
    start = generator.choice(
        [
            generator.randrange(size + 1),
            generator.randrange(min(size, 64) + 1),
            max(0, size - generator.randrange(1, 80)),
        ]
    )
    length = generator.choice([1, 1, 2, 4, 8, generator.randrange(1, 65), generator.randrange(1, size + 2)])
    return start, min(size, start + length)


def _bytes(data: bytes, generator: random.Random) -> tuple[bytes, str]:
    start, end = _place(data, generator)
    piece = data[start:end]
    kind = generator.choice(
        [
            "flip",
            "zero",
            "0xff",
            "cut",
            "cut front",
            "insert",
            "delete",
            "duplicate",
            "number",
            "swap",
            "noise",
            "append",
        ]
    )
    if kind == "flip" and piece:
        new = bytes([piece[0] ^ (1 << generator.randrange(8))]) + piece[1:]
    elif kind == "zero":
        new = b"\0" * len(piece)
    elif kind == "0xff":
        new = b"\xff" * len(piece)
    elif kind == "cut":
        return data[:start], f"cut at {start}"
    elif kind == "cut front":
        return data[start:], f"without its first {start} bytes"
    elif kind == "insert":
        new = generator.choice([*ODD_BYTES, generator.randbytes(generator.randrange(1, 9))]) + piece
    elif kind == "delete":
        new = b""
    elif kind == "duplicate":
        new = piece * 2
    elif kind == "number":
        number = generator.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1])
        size = generator.choice([4, 8])
        new, end = (number & (2 ** (8 * size) - 1)).to_bytes(size, "little"), start + size
    elif kind == "swap":
        where, to = _place(data, generator)
        if where >= end:
            return data[:start] + data[where:to] + data[end:where] + piece + data[
                to:
            ], f"{start}:{end} and {where}:{to} swapped"
        new = piece[::-1]
    elif kind == "append":
        return data + generator.choice([*ODD_BYTES, b"\n", b"}", data[:32], b"\0" * 512]), "something appended"
    else:
        new = generator.randbytes(len(piece))
    return data[:start] + new + data[end:], f"{kind} at {start}:{end}"


def _text(data: bytes, generator: random.Random) -> tuple[bytes, str]:
    text = data.decode("utf-8")
    kind = generator.choice(["insert", "insert", "replace", "BOM", "CRLF", "CR", "utf-16", "gb18030", "latin-1"])
    if kind == "BOM":
        return b"\xef\xbb\xbf" + data, "byte order mark"
    if kind in ("CRLF", "CR"):
        return text.replace("\n", "\r\n" if kind == "CRLF" else "\r").encode("utf-8"), f"{kind} at the ends of lines"
    if kind in ("utf-16", "gb18030", "latin-1"):
        return (text + "é你" * generator.randrange(2)).encode(kind, errors="ignore"), f"in {kind}"
    start = generator.randrange(len(text) + 1)
    end = start if kind == "insert" else min(len(text), start + generator.randrange(1, 12))
    odd = generator.choice(ODD_TEXTS)
    return (text[:start] + odd + text[end:]).encode("utf-8"), f"{odd[:12]!r} for {start}:{end}"


def _lines(data: bytes, generator: random.Random) -> tuple[bytes, str]:
    lines = data.split(b"\n")
    at, to = generator.randrange(len(lines)), generator.randrange(len(lines))
    kind = generator.choice(["delete", "duplicate", "swap", "empty", "join", "cut", "fields"])
    if kind == "delete":
        del lines[at]
    elif kind == "duplicate":
        lines.insert(to, lines[at])
    elif kind == "swap":
        lines[at], lines[to] = lines[to], lines[at]
    elif kind == "empty":
        lines[at] = generator.choice([b"", b" ", b"\t", b"{}", b"[]", b"null", b"0", b'""'])
    elif kind == "join":
        lines[at : at + 2] = [b"".join(lines[at : at + 2])]
    elif kind == "cut":
        lines[at] = lines[at][: generator.randrange(len(lines[at]) + 1)]
    else:
        separator = b"\t" if b"\t" in lines[at] else b","
        fields = lines[at].split(separator)
        generator.shuffle(fields)
        lines[at] = separator.join(fields[: generator.randrange(len(fields) + 1)])
    return b"\n".join(lines), f"line {at + 1}: {kind}"


def _json(data: bytes, generator: random.Random) -> tuple[bytes, str]:
    """Put an odd value somewhere into a JSON text, or into one of its lines."""
    lines = data.decode("utf-8").split("\n")
    text, number = "\n".join(lines), None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        number = generator.randrange(len(lines))
        text = lines[number]
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return _text(data, generator)
    if not isinstance(value, dict | list):
        return _text(data, generator)
    new, what = odd_json(value, generator)
    if number is None:
        return new.encode("utf-8", errors="surrogatepass"), what
    lines[number] = new
    return "\n".join(lines).encode("utf-8", errors="surrogatepass"), f"line {number + 1}: {what}"


def odd_json(value: Any, generator: random.Random) -> tuple[str, str]:
    """Return the JSON text of ``value`` with one place of it made odd, and what was done."""
    value = json.loads(json.dumps(value))
    parents = list(_containers(value))
    parent = generator.choice(parents)
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    odd = generator.choice(ODD_VALUES)
    kind = generator.choice(
        ["value", "value", "value", "value", "delete", "add", "repeat", "rename", "list of it", "text of it"]
    )
    if not keys:
        kind = "add"
    key: Any = generator.choice(keys) if keys else None
    if kind == "value":
        parent[key] = MARK
    elif kind == "delete":
        del parent[key]
    elif kind == "list of it":
        parent[key] = generator.choice([[parent[key]], {"x": parent[key]}])
    elif kind == "text of it":
        parent[key] = str(parent[key])
    elif isinstance(parent, list):
        parent.append(MARK if kind == "add" else parent[key] if keys else None)
    elif kind == "rename":
        parent[f"{key}_"] = parent.pop(key)
    elif kind == "repeat":
        parent[MARK] = 0
        odd = json.dumps(key)
    else:
        parent[generator.choice(["x", "", "label", "idx", "\u2028"])] = MARK
    text = json.dumps(value, ensure_ascii=generator.random() < 0.5)
    return text.replace(f'"{MARK}"', odd), f"{kind} at {key!r}: {odd[:20]}"


def _containers(value: Any) -> list[Any]:
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(found for item in inner for found in _containers(item))]


def odd_content(value: Any, generator: random.Random, odd_values: list[Callable[[Any], Any]]) -> str:
    """Change one place of nested dictionaries and lists, as a checkpoint's content is; return what was done."""
    parent = generator.choice(_containers(value))
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    if not keys:
        return "nothing"
    key = generator.choice(keys)
    if generator.random() < 0.15:
        del parent[key]
        return f"without {key!r}"
    odd = generator.choice(odd_values)
    try:
        parent[key] = odd(parent[key])
    except (RuntimeError, IndexError, TypeError, AttributeError):  # not every tensor can be made odd in every way
        return "nothing"
    return f"{key!r} is {type(parent[key]).__name__} {repr(parent[key])[:40]!r}"
