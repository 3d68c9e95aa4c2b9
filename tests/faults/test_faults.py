"""A few trials of each kind of fault; `make faults` makes them all."""

import importlib
from pathlib import Path

import pytest

from normlab.evaluation import evaluator
from tests.faults.__main__ import KINDS, numbers


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [(kind, number) for kind in KINDS for number in numbers(kind, short=True)])
def test_a_fault_costs_nothing(kind: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Instead of 50, which take longer than all the training between two evaluations.
    monkeypatch.setattr(evaluator, "STATISTICS_BATCHES", 3)
    importlib.import_module(f"tests.faults.{kind}").trial(number, tmp_path / "trial")
