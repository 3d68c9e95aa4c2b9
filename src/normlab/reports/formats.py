"""Tables for other programs: CSV, Markdown, LaTeX."""

import csv
import io
import re
from typing import Any

from normlab.reports.tables import Bounded, Table, cell, headings, is_numeric

FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"  # to the line, if wider
MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_LATEX = str.maketrans(
    {
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)


def as_csv(table: Table) -> str:
    """Return the rows with full precision, an interval in columns of its own; what is missing is empty."""
    columns = headings(table.rows)
    bounded = {column for column in columns if any(isinstance(row.get(column), Bounded) for row in table.rows)}
    names = [
        name
        for column in columns
        for name in ([column, f"{column} low", f"{column} high"] if column in bounded else [column])
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in table.rows:
        values: list[Any] = []
        for column in columns:
            value = row.get(column)
            if column in bounded:
                values += [value.value, value.low, value.high] if isinstance(value, Bounded) else [value, None, None]
            else:
                values.append(value)
        writer.writerow(values)
    return file.getvalue()


def as_markdown(table: Table) -> str:
    """Return the table with its title and lines."""
    columns = headings(table.rows)
    rules = ["---:" if is_numeric(table.rows, column) else "---" for column in columns]
    cells = [[cell(row.get(column)).replace("|", "\\|") for column in columns] for row in table.rows]
    rows = [f"| {' | '.join(row)} |" for row in (columns, rules, *cells)]
    return "\n".join([f"**{table.title}**", "", *rows, "", *table.lines, ""])


def as_latex(table: Table) -> str:
    """Return a `table` of the packages booktabs and graphicx, the title its caption; one too wide is made smaller."""
    columns = headings(table.rows)
    alignment = "".join("r" if is_numeric(table.rows, column) else "l" for column in columns)
    header, *rows = (
        " & ".join(MINUS.sub("$-$", text.translate(_LATEX)) for text in texts) + r" \\"
        for texts in (columns, *([cell(row.get(column)) for column in columns] for row in table.rows))
    )
    caption = " ".join([f"{table.title}.", *table.lines]).translate(_LATEX)
    caption = re.sub("`([^`]*)`", r"\\texttt{\1}", caption)
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{caption}}}",
            rf"  \label{{tab:{table.name}}}",
            rf"  {FITTED}{{\begin{{tabular}}{{{alignment}}}",
            r"    \toprule",
            f"    {header}",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}}",
            r"\end{table}",
            "",
        ]
    )
