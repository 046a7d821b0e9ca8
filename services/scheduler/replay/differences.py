"""Where two decisions differ, for people: path, expected value, value that came instead."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import islice, zip_longest
from typing import Any, Final

import msgspec

from common.token_ids import ITEM_BYTES, unpack_ids

MAX_SHOWN: Final = 20  # differences of one decision
_MAX_ITEMS: Final = 4  # of a list that are shown
_MISSING: Final = object()


def differences(expected: Any, got: Any, path: str = "") -> Iterator[str]:
    """Lines `path: expected ..., got ...` for all leaves that are not equal."""
    if type(expected) is not type(got):
        yield f"{path}: expected {brief(expected)}, got {brief(got)}"
    elif (names := _field_names(expected)) is not None:
        for name in names:
            yield from differences(
                getattr(expected, name), getattr(got, name), f"{path}.{name}" if path else name
            )
    elif isinstance(expected, Mapping):
        for key in {**expected, **got}:
            yield from differences(
                expected.get(key, _MISSING), got.get(key, _MISSING), f"{path}[{brief(key)}]"
            )
    elif isinstance(expected, Sequence) and not isinstance(expected, str | bytes):
        for index, pair in enumerate(zip_longest(expected, got, fillvalue=_MISSING)):
            yield from differences(*pair, f"{path}[{index}]")
    elif expected != got:
        yield f"{path}: expected {brief(expected)}, got {brief(got)}"


def first_differences(expected: Any, got: Any, path: str = "") -> list[str]:
    """MAX_SHOWN of them; the last line says if there are more."""
    lines = list(islice(differences(expected, got, path), MAX_SHOWN + 1))
    return [*lines[:MAX_SHOWN], "..."] if len(lines) > MAX_SHOWN else lines


def brief(value: Any) -> str:
    """One line, whatever the value: long lists and packed ids are cut."""
    if value is _MISSING:
        return "nothing"
    names = _field_names(value)
    if names is not None:
        shown = ", ".join(f"{name}={brief(getattr(value, name))}" for name in names)
        return f"{type(value).__name__}({shown})"
    if isinstance(value, bytes):
        return _brief_bytes(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(map(brief, islice(value, _MAX_ITEMS)))
        return f"[{shown}]" if len(value) <= _MAX_ITEMS else f"[{shown}, ... {len(value)} items]"
    return repr(value)


def _brief_bytes(value: bytes) -> str:
    """Nearly all bytes in messages are packed ids."""
    if len(value) % ITEM_BYTES:
        return f"<{len(value)} bytes>"
    return f"ids {brief(list(unpack_ids(value)))}"


def _field_names(value: Any) -> tuple[str, ...] | None:
    """Of a message or a dataclass; None for everything else."""
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if is_dataclass(value):
        return tuple(field.name for field in fields(value))
    return None
