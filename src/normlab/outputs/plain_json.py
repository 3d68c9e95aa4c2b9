"""JSON that every reader accepts."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from normlab.outputs.atomic import write_atomically


def read(path: Path) -> dict[str, Any]:
    """Return the object that a file holds; an empty one where there is none to be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def write(path: Path, value: Any) -> None:
    """Write a value to a file, in one step; raise ResourceError if it cannot be written."""
    write_atomically(path, (dump(value, indent=2) + "\n").encode())


def dump(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON text; non-finite numbers, for which JSON has no word, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in cast(Sequence[Any], value)]
    return value
