import math
from typing import Annotated, Literal

import pytest

from normlab.settings import (
    Fraction,
    Length,
    Misfit,
    Pattern,
    PositiveFloat,
    PositiveInt,
    Unit,
    convert,
)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, PositiveInt, 3),
        (3.0, PositiveInt, 3),
        (1, PositiveFloat, 1.0),
        (None, PositiveInt | None, None),
        ([0.5, 0], tuple[Fraction, Fraction], (0.5, 0.0)),
        ([], tuple[str, ...], ()),
        ("bf16", Literal["fp32", "bf16"], "bf16"),
        ("1 epoch", Length, Length(1, "epochs")),
        ("2.5 epochs", Annotated[Length, Unit("epochs")], Length(2.5, "epochs")),
        (False, bool, False),
    ],
)
def test_a_fitting_value_takes_the_declared_type(value: object, hint: object, expected: object) -> None:
    converted = convert(value, hint)

    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (0, PositiveInt),
        (2.5, PositiveInt),
        (True, PositiveInt),
        ("3", PositiveInt),
        (math.nan, PositiveFloat),
        (math.inf, PositiveFloat),
        (1, Fraction),
        (None, PositiveInt),
        ([0.5], tuple[Fraction, Fraction]),
        ("ab", tuple[str, ...]),
        ("fp16", Literal["fp32", "bf16"]),
        (5, Length),
        ("5", Length),
        ("-5 steps", Length),
        ("2.5 steps", Length),
        ("5 furlongs", Length),
        ("5 minutes", Annotated[Length, Unit("steps", "epochs")]),
        ("a/b", Annotated[str, Pattern("[a-z]+", "of letters")]),
        ([1], int),
        ({}, str),
    ],
)
def test_a_misfit_names_the_value(value: object, hint: object) -> None:
    with pytest.raises(Misfit) as misfit:
        convert(value, hint)

    assert misfit.value.problem == f"got {value!r}"


@pytest.mark.parametrize("text", ["1 step", "100 steps", "0.5 epochs", "1 epoch", "50000 images", "10 minutes"])
def test_a_length_is_written_as_it_is_read(text: str) -> None:
    assert str(Length.parse(text)) == text
