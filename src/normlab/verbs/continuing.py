"""How to go on with a run that has not ended."""

import shlex

from normlab.reports.runs import Run


def how_to_continue(run: Run) -> str | None:
    """Return the command that continues a run, or None where there is nothing to continue."""
    if run.state not in ("stopped", "interrupted", "failed", "collapsed"):
        return None
    # By its own settings a run that has collapsed is over.
    further = " on_collapse=record" if run.state == "collapsed" else ""
    return f"normlab train resume={shlex.quote(str(run.path.resolve()))}{further}"
