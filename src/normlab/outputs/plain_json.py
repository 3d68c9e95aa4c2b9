"""JSON that every reader accepts."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast


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
