import json
import math

from normlab.outputs import plain_json


def test_numbers_that_json_has_no_word_for_become_null_at_any_depth():
    value = {"a": math.nan, "b": [math.inf, {"c": -math.inf, "d": 1.5}], "e": (1, True, None, "x")}
    assert json.loads(plain_json.dump(value)) == {
        "a": None,
        "b": [None, {"c": None, "d": 1.5}],
        "e": [1, True, None, "x"],
    }
