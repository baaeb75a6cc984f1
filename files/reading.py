"""Read text, lines and JSON that people and other programs wrote, and check the values in them.

Everything is UTF-8. Whatever is wrong is a ValueError of one line that names the place. Standard library only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

Kind = TypeVar("Kind")
REQUIRED: Any = object()
NAMES_OF_KINDS = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list",
    dict: "an object", type(None): "null",
}  # fmt: skip


def read_text(path: str | Path) -> str:
    """Return the text of a file, without a byte order mark; ends of lines stay as they are.

    Raises ValueError when it is missing, a folder, or not UTF-8.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder; a file is needed") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: {not_utf8(error)}") from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return what to say of bytes that are not UTF-8, with the command that converts the usual other encodings."""
    data = error.object
    encoding = next((name for name in ("utf-16", "gb18030") if _decodes(data, name)), None)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif encoding == "utf-16":
        encoding = "gb18030" if _decodes(data, "gb18030") else None
    hint = f"; it may be {encoding.upper()}: iconv -f {encoding.upper()} -t UTF-8 FILE" if encoding else ""
    return f"not UTF-8 text (byte {error.start}){hint}"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def lines_of(text: str) -> list[str]:
    r"""Return the lines of a text, which end with ``\n`` or ``\r\n`` and with nothing else; a last empty one is none.

    ``str.splitlines`` also cuts at U+2028, form feeds and lone carriage returns, which texts contain.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def parse_json(text: str | bytes, *, place: str) -> Any:
    """Return the value of a JSON text.

    Raises ValueError, which begins with ``place``, for what is no JSON, repeats a key of an object, holds half of a
    surrogate pair, is nested too deeply, or has a number of too many digits.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = _DECODER.decode(text)
        if "\\" in text and _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: {not_utf8(error)}") from None
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"{place}: {half} is half of a surrogate pair, which stands for no character") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise ValueError(f"{place}: not valid JSON ({error.msg}, {where})") from None
    except RecursionError:
        raise ValueError(f"{place}: JSON nested too deeply") from None
    except ValueError as error:  # a repeated key, or an integer of more digits than Python reads
        reason = str(error) if isinstance(error, _RepeatedKeyError) else "a number of too many digits"
        raise ValueError(f"{place}: {reason}") from None
    return value


class _RepeatedKeyError(ValueError):
    """A key stands twice in one JSON object: which value is meant, is not known."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKeyError(f"the key {twice[:80]!r} stands twice in one JSON object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # made once: json.loads would make one at every call
_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD]")
_NEAR_THE_END = 12  # characters in which a literal, an escape or a number may be cut off


def end_of_json(text: str, start: int, *, is_whole: bool = False) -> int | None:
    """Return where the JSON value that begins at ``start`` ends; None where more text may make one of it.

    Nothing does so where the text ``is_whole``. The value itself is not checked, see ``parse_json``. Raises ValueError,
    without a place, for what is no JSON.
    """
    try:
        return _SCANNER.raw_decode(text, start)[1]
    except json.JSONDecodeError as error:
        is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(text) - _NEAR_THE_END
        if is_cut and not is_whole:
            return None
        raise ValueError(f"not valid JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def read_json(path: str | Path, kind: type[Kind] = dict) -> Kind:  # type: ignore[assignment]
    """Return the value of a JSON file, which has to be of ``kind``. Raises ValueError as ``parse_json`` does."""
    value = parse_json(read_text(path), place=str(path))
    if not isinstance(value, kind):
        raise ValueError(f"{path}: {NAMES_OF_KINDS[kind]} is needed in JSON, found {described(value)}")
    return value


def described(value: Any, *, width: int = 60) -> str:
    """Return a value as messages show it: short, on one line."""
    try:
        text = repr(value)
    except RecursionError:
        return f"{NAMES_OF_KINDS.get(type(value), 'a value')} nested too deeply"
    return text if len(text) <= width else f"{text[: width - 3]}..."


def missing(fields: Mapping[Any, Any], name: Any) -> str:
    """Return what to say of an object without ``name``: the key that was probably meant, and those there are."""
    from difflib import get_close_matches  # rarely needed, and slow to import

    if name in fields:
        return f"{name} is null"
    known = [str(key) for key in fields]
    folded = {key.casefold(): key for key in known}
    near = get_close_matches(str(name).casefold(), [key for key in folded if key != str(name)], n=1, cutoff=0.7)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    shown = [key[:40] if key.isprintable() else described(key, width=40) for key in known[:12]]
    return f"no {name!r}; {hint}it has {', '.join(shown) or 'nothing'}"


def needed(
    value: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> str | None:
    """Return what is needed in the place of a number that is not finite or out of bounds; None of a fitting one."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number is needed"
    bounds = (
        ("at least", at_least, at_least is None or value >= at_least),
        ("above", above, above is None or value > above),
        ("at most", at_most, at_most is None or value <= at_most),
        ("below", below, below is None or value < below),
    )
    if all(fitting for *_, fitting in bounds):
        return None
    return " and ".join(f"{word} {bound}" for word, bound, _ in bounds if bound is not None) + " is needed"


def value_of(
    fields: Mapping[Any, Any],
    name: Any,
    kind: type[Kind],
    *,
    place: str,
    default: Any = REQUIRED,
    **bounds: float | None,
) -> Kind:
    """Return the value under ``name`` of an object that was read from a file, or ``default`` where there is none.

    Truth values are no numbers; whole numbers are numbers; numbers are finite, and within ``bounds``, those of
    ``needed``. Raises ValueError with ``place`` and ``name`` for a missing value (null counts as missing), one of
    another kind, or out of bounds.
    """
    value = fields.get(name)
    if value is None:
        if default is REQUIRED:
            raise ValueError(f"{place}: {missing(fields, name)}")
        return default
    fitting = isinstance(value, bool) == (kind is bool) and isinstance(value, (int, float) if kind is float else kind)
    if kind is float and fitting:
        try:
            value = float(value)
        except OverflowError:
            fitting = False
    if not fitting or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{place}: {str(name)[:80]} is {described(value)}; {NAMES_OF_KINDS[kind]} is needed")
    wanted = needed(value, **bounds) if isinstance(value, int | float) else None
    if wanted:
        raise ValueError(f"{place}: {str(name)[:80]} is {described(fields[name])}; {wanted}")
    return value  # type: ignore[return-value]  # whole numbers are numbers
