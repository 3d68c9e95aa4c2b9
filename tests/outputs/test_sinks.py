import json
import logging
import math
import re
import warnings
from pathlib import Path

import pytest
import torch

from normlab.errors import ResourceError
from normlab.outputs import sinks
from normlab.outputs.sinks import JsonLines, Progress, TensorBoard, duration, open_log


@pytest.fixture
def rows(tmp_path):
    rows = JsonLines(tmp_path / "metrics.jsonl")
    for step in (10, 20, 30):
        rows.append({"step": step, "loss/generator": step / 3})
    return rows


def steps(rows):
    return [row["step"] for row in rows.rows()]


def test_every_row_is_one_line_of_valid_json_even_when_a_loss_is_not_finite(rows):
    rows.append({"step": 40, "loss/generator": math.nan, "loss/discriminator": -math.inf})
    lines = rows.path.read_text().splitlines()
    assert json.loads(lines[3], parse_constant=pytest.fail) == {
        "step": 40,
        "loss/generator": None,
        "loss/discriminator": None,
    }


def test_floats_keep_seven_digits_and_steps_stay_whole(rows):
    rows.append({"step": 123_456_789, "a": 1 / 3, "b": 2e-300, "c": 123456789.0})
    assert rows.path.read_text().splitlines()[3] == '{"step": 123456789, "a": 0.3333333, "b": 2e-300, "c": 123456800.0}'


def test_a_missing_file_has_no_rows_and_can_be_cut(tmp_path):
    rows = JsonLines(tmp_path / "metrics.jsonl")
    rows.cut(0)
    assert rows.rows() == []


def test_cutting_drops_the_rows_beyond_a_step_and_a_half_line(rows):
    with rows.path.open("a") as file:
        file.write('{"step": 15, "loss/gen')
    rows.cut(20)
    rows.append({"step": 30})
    assert steps(rows) == [10, 20, 30]
    assert rows.path.read_bytes().count(b"\n") == 3


def test_a_line_without_its_end_does_not_count_even_if_it_parses(rows):
    with rows.path.open("a") as file:
        file.write('{"step": 4')
    assert steps(rows) == [10, 20, 30]
    with rows.path.open("a") as file:
        file.write("}")
    assert steps(rows) == [10, 20, 30]
    rows.cut(30)
    rows.append({"step": 40})
    assert steps(rows) == [10, 20, 30, 40]


def test_cutting_removes_what_a_lost_block_left_in_the_middle(rows):
    lines = rows.path.read_bytes().splitlines(keepends=True)
    rows.path.write_bytes(lines[0] + bytes(20) + b"\n" + b"\xff\xfe\n" + lines[2])
    rows.cut(100)
    assert rows.path.read_bytes() == lines[0] + lines[2]


def test_cutting_where_nothing_is_beyond_leaves_the_file_alone(rows):
    before = rows.path.stat().st_ino
    rows.cut(30)
    assert rows.path.stat().st_ino == before


def test_text_that_holds_line_separators_stays_one_row(rows):
    rows.append({"step": 40, "note": "a\u2028b\nc\x85d"})
    assert rows.rows()[3]["note"] == "a\u2028b\nc\x85d"


def test_rows_that_cannot_be_written_are_a_resource_error(tmp_path):
    rows = JsonLines(tmp_path / "missing" / "metrics.jsonl")
    with pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written"):
        rows.append({"step": 1})
    with pytest.raises(ResourceError):
        rows.sync()


def scalar_steps(path, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_after_a_resume_every_step_stands_once(tmp_path):
    first = TensorBoard(tmp_path)
    for step in range(1, 8):
        first.scalars({"loss/generator": float(step)}, step)
    first.close()
    second = TensorBoard(tmp_path, purge_step=5)
    for step in range(5, 10):
        second.scalars({"loss/generator": -float(step)}, step)
    second.close()
    expected = [(step, float(step)) for step in range(1, 5)] + [(step, -float(step)) for step in range(5, 10)]
    assert scalar_steps(tmp_path, "loss/generator") == expected


def test_flushed_events_are_there_while_the_run_goes_on(tmp_path):
    board = TensorBoard(tmp_path)
    board.scalars({"loss/generator": 1.0}, 1)
    board.flush()
    assert scalar_steps(tmp_path, "loss/generator") == [(1, 1.0)]
    board.close()


def test_images_and_text_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.grid("samples", torch.zeros(3, 5, 7, dtype=torch.uint8), 4)
    board.text("config", "seed: 1")
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (image,) = events.Images("samples")
    assert (image.step, image.height, image.width) == (4, 5, 7)
    assert "config/text_summary" in events.Tags()["tensors"]


def test_one_page_of_tensorboard_shows_whether_a_run_is_healthy(tmp_path: Path) -> None:
    """As its plugin reads it: every chart finds what a run writes, and every scalar of a step has a chart."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    board = TensorBoard(tmp_path)
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    patterns = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    written = [f"{name}/{network}" for name in ("loss", "gradient_norm") for network in ("generator", "discriminator")]
    written += ["loss/penalty", *(f"score/{name}" for name in ("real", "fake", "accuracy", "spread"))]
    written += ["sigma/generator/0", "sigma/discriminator/blocks.1", "live/frechet_distance", "averaged/coverage"]

    assert all(any(re.fullmatch(pattern, tag) for pattern in patterns) for tag in written)
    assert all(any(re.fullmatch(pattern, tag) for tag in written) for pattern in patterns)


def test_the_thread_that_writes_for_tensorboard_ends_without_a_traceback(tmp_path, capfd):
    open_log(tmp_path / "run.log")
    board = TensorBoard(tmp_path / "tensorboard")
    writer = board._writer._get_file_writer().event_writer._async_writer

    def full(data):
        raise OSError(27, "File too large")

    writer._worker._record_writer.write = full
    for step in range(100):
        board.scalars({"loss/generator": 1.0}, step)
        if board._writer is None:
            break
        writer._worker.join(0.05)
    assert "Traceback" not in capfd.readouterr().err
    assert "OSError: [Errno 27] File too large" in (tmp_path / "run.log").read_text()
    assert "TensorBoard is off" in (tmp_path / "run.log").read_text()


def test_tensorboard_that_cannot_be_opened_warns_once_and_stays_off(tmp_path, caplog):
    (tmp_path / "tensorboard").touch()
    board = TensorBoard(tmp_path / "tensorboard")
    use_everything(board)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "TensorBoard is off" in caplog.text


def test_tensorboard_that_fails_while_writing_warns_once_and_stays_off(tmp_path, caplog, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    use_everything(TensorBoard(tmp_path))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def use_everything(board):
    board.scalars({"a": 1.0, "b": 2.0}, 1)
    board.grid("samples", torch.zeros(1, 2, 2, dtype=torch.uint8), 1)
    board.text("config", "")
    board.flush()
    board.close()


@pytest.fixture
def restored_logging():
    root, ours = logging.getLogger(), logging.getLogger("normlab")
    handlers, levels, raising = root.handlers[:], (root.level, ours.level), logging.raiseExceptions
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    logging.raiseExceptions = raising
    logging.captureWarnings(False)


def log_one_of_each():
    logger = logging.getLogger("normlab.some.part")
    logger.debug("in detail")
    logger.info("as it goes")
    logger.warning("careful")
    try:
        raise KeyError("the cause")
    except KeyError:
        logger.exception("it failed")


@pytest.mark.usefixtures("restored_logging")
def test_the_log_file_gets_everything_and_the_console_plain_lines(tmp_path, capsys):
    open_log(tmp_path / "run.log")
    log_one_of_each()
    logging.getLogger("library").info("chatter")
    output = capsys.readouterr()
    assert output.err == "as it goes\nwarning: careful\nit failed\n"
    assert output.out == ""
    text = (tmp_path / "run.log").read_text()
    assert "in detail" in text
    assert "Traceback" in text
    assert "chatter" not in text


@pytest.mark.usefixtures("restored_logging")
def test_debug_brings_details_and_tracebacks_to_the_console(tmp_path, capsys):
    open_log(tmp_path / "run.log", debug=True)
    log_one_of_each()
    error = capsys.readouterr().err
    assert "in detail" in error
    assert "Traceback" in error


@pytest.mark.usefixtures("restored_logging")
def test_opening_the_log_again_appends_and_writes_each_line_once(tmp_path):
    for text in ("first", "second"):
        open_log(tmp_path / "run.log")
        logging.getLogger("normlab").info(text)
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["first", "second"]


@pytest.mark.usefixtures("restored_logging")
def test_python_warnings_reach_the_log(tmp_path):
    open_log(tmp_path / "run.log")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("an old habit", stacklevel=1)
    assert "an old habit" in (tmp_path / "run.log").read_text()


@pytest.mark.usefixtures("restored_logging")
def test_a_log_that_cannot_be_opened_is_a_resource_error(tmp_path):
    with pytest.raises(ResourceError, match=r"run\.log: cannot be written"):
        open_log(tmp_path / "missing" / "run.log")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only this test moves."""
    now = [0.0]
    monkeypatch.setattr(sinks.time, "monotonic", lambda: now[0])
    return now


def test_progress_without_a_terminal_is_plain_lines_with_speed_time_left_and_losses(clock, caplog):
    progress = Progress()
    progress.start(step=100, total_steps=1000, images_per_step=64)
    for _ in range(100):
        progress.advance()
    clock[0] = 10.0
    with caplog.at_level(logging.INFO):
        progress.report(200, {"loss/generator": 0.51234, "score/real": 3.0})
    assert caplog.messages == ["step 200 of 1,000 (20 %)  640 images/s  1m 20s left  loss/generator 0.5123"]


def test_speed_is_of_the_last_interval_and_the_time_left_of_the_whole(clock):
    progress = Progress()
    progress.start(step=0, total_steps=40, images_per_step=10)
    clock[0] = 10.0
    progress.report(10, {})
    clock[0] = 15.0
    progress.report(20, {})
    assert progress.images_per_second == 20
    assert progress.eta_seconds == 15


def test_a_report_before_the_first_step_tells_no_speed(clock, caplog):
    progress = Progress()
    progress.start(step=0, total_steps=10, images_per_step=1)
    with caplog.at_level(logging.INFO):
        progress.report(0, {})
    assert caplog.messages == ["step 0 of 10 (0 %)"]
    assert progress.eta_seconds is None


@pytest.mark.usefixtures("restored_logging")
def test_on_a_terminal_log_lines_stand_above_the_bar_and_reports_go_to_the_file_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    open_log(tmp_path / "run.log")
    progress = Progress()
    progress.start(step=0, total_steps=10, images_per_step=1)
    progress.advance()
    logging.getLogger("normlab").info("a line")
    progress.report(1, {"loss/generator": 1.5})
    progress.close()
    error = capsys.readouterr().err
    # The bar is wiped with a carriage return before the line, so the line begins in the first column.
    assert "\ra line\n" in error
    assert "loss/generator 1.5" in error
    assert "step 1 of 10" not in error
    assert "step 1 of 10" in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m 00s"), (3599, "59m 59s"), (7500, "2h 05m"), (273600, "3d 04h")]
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text
