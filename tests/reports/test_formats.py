"""Tables as other programs read them."""

import csv
import io
import re

from normlab.reports.formats import as_csv, as_latex, as_markdown
from normlab.reports.tables import Bounded, Probability, Table, cell

TABLE = Table(
    name="quality",
    title="Quality: a_b in % of {all} & more",
    rows=[
        {"arm": "G:batch D:none|x", "fid": Bounded(12.3456789, 11.0, 13.5), "p": None, "n": 5},
        {"arm": "G:batch D:layer", "fid": Bounded(9.5), "p": Probability(0.00001), "n": 4},
    ],
    lines=["Lower is better."],
)


def test_csv_has_every_digit_and_a_column_for_each_bound() -> None:
    assert [*csv.DictReader(io.StringIO(as_csv(TABLE)))] == [
        {"arm": "G:batch D:none|x", "fid": "12.3456789", "fid low": "11.0", "fid high": "13.5", "p": "", "n": "5"},
        {"arm": "G:batch D:layer", "fid": "9.5", "fid low": "", "fid high": "", "p": "1e-05", "n": "4"},
    ]


def test_markdown_keeps_a_bar_within_its_cell() -> None:
    lines = as_markdown(TABLE).splitlines()

    assert lines[2:6] == [
        "| arm | fid | p | n |",
        "| --- | ---: | ---: | ---: |",
        "| G:batch D:none\\|x | 12.35 [11, 13.5] | - | 5 |",
        "| G:batch D:layer | 9.5 | <0.0001 | 4 |",
    ]


def test_latex_is_a_table_of_booktabs_with_nothing_left_to_escape() -> None:
    text = as_latex(TABLE)

    assert [text.index(word) for word in (r"\toprule", r"\midrule", r"\bottomrule")] == sorted(
        text.index(word) for word in (r"\toprule", r"\midrule", r"\bottomrule")
    )
    assert r"\caption{Quality: a\_b in \% of \{all\} \& more. Lower is better.}" in text
    assert r"\begin{tabular}{lrrr}" in text
    assert text.count(r" \\" + "\n") == 3
    assert not re.search(r"(?<!\\)[%_]", text)


def test_a_p_is_not_rounded_to_the_level_that_it_is_below() -> None:
    assert [cell(Probability(p)) for p in (0.04997, 0.0499, 0.05, 0.0503, 0.0123)] == [
        "0.04997",
        "0.0499",
        "0.05",
        "0.05",
        "0.012",
    ]
