"""What Motley raises: Error, or the subclass that is also the built-in exception of its kind."""
from __future__ import annotations

__all__ = ["Error", "InvalidArgumentError", "NotFoundError", "UnimplementedError"]

_CODES = ("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
          "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
          "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED")


class Error(Exception):
    """One line that says what, where and what to do. `code` is the canonical code, e.g. "RESOURCE_EXHAUSTED"."""

    code: str = "UNKNOWN"


class InvalidArgumentError(Error, ValueError):
    code = "INVALID_ARGUMENT"


class NotFoundError(Error, FileNotFoundError):
    code = "NOT_FOUND"


class UnimplementedError(Error, NotImplementedError):
    """What is not built."""

    code = "UNIMPLEMENTED"


_CLASSES: dict[str, type[Error]] = {c.code: c for c in (InvalidArgumentError, NotFoundError, UnimplementedError)}


def error_of_code(code: int, text: str) -> Error:
    name = _CODES[code] if 0 <= code < len(_CODES) else "UNKNOWN"
    error = _CLASSES.get(name, Error)(text)
    error.code = name
    return error
