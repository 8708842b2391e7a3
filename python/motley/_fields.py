"""Keyword arguments that become fields of a native struct: checked here, so that an error names the argument."""
from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

from .errors import InvalidArgumentError, UnimplementedError

Convert = Callable[[str, Any], Any]


def _wrong_type(name: str, value: object, wanted: str) -> TypeError:
    return TypeError(f"{name} must be {wanted}, not {type(value).__name__}")


def _whole(least: int, most: int) -> Convert:
    def convert(name: str, value: Any) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise _wrong_type(name, value, "an int")
        number: int = value.__index__()
        if not least <= number <= most:
            raise InvalidArgumentError(f"{name} must be from {least} to {most}, not {number}")
        return number
    return convert


count = _whole(0, 2**32 - 1)
size = _whole(0, 2**64 - 1)
integer = _whole(-2**31, 2**31 - 1)
_seed = _whole(-2**63, 2**64 - 1)


def seed(name: str, value: Any) -> int:
    return int(_seed(name, value)) % 2**64


def number(name: str, value: Any) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise _wrong_type(name, value, "a number")
    return float(value)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "a bool")
    return value


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, value, "a str")
    try:
        value.encode()
    except UnicodeEncodeError as failure:
        raise InvalidArgumentError(
            f"{name} holds the lone surrogate U+{ord(value[failure.start]):04X}, which UTF-8 does not have; take it "
            "out, as with text.encode(errors='replace').decode()") from None
    return value


def json_text(name: str, value: Any) -> str:
    """The value as JSON, for the library to read."""
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as failure:
        kind = TypeError if isinstance(failure, TypeError) else InvalidArgumentError
        raise kind(f"{name}: {failure}") from None
    return text(name, written)


def texts(name: str, value: Any) -> list[str]:
    """One text, or some."""
    if isinstance(value, str):
        return [text(name, value)]
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(name, value, "a str or a list of them")
    return [text(f"{name}[{i}]", item) for i, item in enumerate(value)]


def token_ids(name: str, value: Any) -> list[int]:
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(name, value, "a list of token ids")
    try:
        ids = [operator.index(item) for item in value]
    except TypeError as failure:
        raise TypeError(f"{name} must hold token ids: {failure}") from None
    for outlier in (min(ids, default=0), max(ids, default=0)):
        integer(f"a token id of {name}", outlier)
    return ids


def biases(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise _wrong_type(name, value, "a dict of token ids and numbers")
    return {integer(f"a token id of {name}", int(k) if isinstance(k, str) else k): number(f"{name}[{k}]", v)
            for k, v in value.items()}


def fill(native: Any, converters: Mapping[str, Convert], values: Mapping[str, Any], none: frozenset[str]) -> None:
    """Sets the native struct's fields. None leaves a field at its default, or is a value of its own (`none`)."""
    for name, convert in converters.items():
        value = values[name]
        if value is not None:
            setattr(native, name, convert(name, value))
        elif name in none:
            setattr(native, name, None)


def refuse(function: str, others: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """What vLLM knows and Motley has not built is refused unless it asks for nothing; what nobody knows, always."""
    for name, value in others.items():
        if name not in neutral:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        if not any(value is allowed or value == allowed for allowed in neutral[name]):
            raise UnimplementedError(f"{name}={value!r} is not supported; leave it out")
