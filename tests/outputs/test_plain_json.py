import json
import math
from pathlib import Path

import pytest

from normlab.outputs import plain_json


def test_numbers_that_json_has_no_word_for_become_null_at_any_depth():
    value = {"a": math.nan, "b": [math.inf, {"c": -math.inf, "d": 1.5}], "e": (1, True, None, "x")}
    assert json.loads(plain_json.dump(value)) == {
        "a": None,
        "b": [None, {"c": None, "d": 1.5}],
        "e": [1, True, None, "x"],
    }


def test_an_object_comes_back_from_its_file(tmp_path: Path):
    plain_json.write(tmp_path / "file", {"host": "größe", "threads": 1, "spread": math.nan})
    assert plain_json.read(tmp_path / "file") == {"host": "größe", "threads": 1, "spread": None}


@pytest.mark.parametrize("text", [None, "", '{"half', "[1]", "[" * 100_000])
def test_an_empty_object_stands_for_what_cannot_be_read(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "file").write_text(text)
    assert plain_json.read(tmp_path / "file") == {}
