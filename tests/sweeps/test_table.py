"""How the runs of a sweep stand, for people."""

from normlab.sweeps import table
from normlab.sweeps.record import Job

JOBS = [
    Job(job=number, overrides=(f"seed={number}",), folder=f"/nowhere/{number}", state=state, reason=reason)
    for number, (state, reason) in enumerate(
        [("done", None), ("failed", "no luck"), ("waiting", None), ("running", None), ("waiting", None)]
    )
]
SWEPT = [{"seed": str(number)} for number in range(5)]


def test_a_live_table_with_room_shows_every_run_and_what_failed() -> None:
    lines = table.live(JOBS, SWEPT, room=24)

    assert [line.split()[0] for line in lines[2:]] == ["#0", "#1", "#2", "#3", "#4"]
    assert lines[3].endswith("no luck")


def test_a_live_table_without_room_shows_the_runs_that_tell_most() -> None:
    lines = table.live(JOBS, SWEPT, room=5)

    assert [line.split()[0] for line in lines[2:]] == ["#1", "#3", "..."]
    assert lines[-1] == "... and 3 more"


def test_a_run_is_told_in_a_line() -> None:
    assert table.name(JOBS[1], SWEPT[1]) == "#1  seed=1"
    assert table.event(JOBS[1]) == "failed  no luck"
    assert table.event(JOBS[3]) == "starting"
