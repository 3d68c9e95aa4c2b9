"""The verbs that look at runs: what they print, what they give to machines, what they refuse."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import normlab as package
from normlab.outputs.checkpoints import Checkpoints
from normlab.outputs.sinks import JsonLines

from ..conftest import Command

QUICK = ["train", "architecture.width=4", "train.batch_size=16", "train.until=3 steps", "evaluation.samples=50"]


@pytest.fixture
def run(copy_of: Callable[..., Path]) -> Path:
    return copy_of(*QUICK, "ema=standard")


def test_status_shows_a_run(normlab: Command, run: Path) -> None:
    shown = normlab("status", str(run.parent.parent))

    assert shown.exit_code == 0
    assert "G:batch D:spectral" in shown.stdout
    assert "classifier_score" in shown.stdout


def test_status_marks_flagged_scores_and_tells_protocols_apart(normlab: Command, run: Path, tmp_path: Path) -> None:
    alike, other = (shutil.copytree(run, tmp_path / "more" / name) for name in ("alike", "other"))
    rows = JsonLines(other / "evaluations.jsonl").rows()
    (other / "evaluations.jsonl").unlink()
    for row in rows:
        JsonLines(other / "evaluations.jsonl").append({**row, "protocol": "mine/samples-20", "flags": ["odd"]})
    shown = normlab("status", str(run), str(tmp_path / "more")).stdout.splitlines()
    usual = rows[-1]["protocol"]

    assert ["odd" in line for line in shown[2:5]] == [False, False, True]
    assert shown[5:] == [
        f"scores of digits by different protocols do not compare: mine/samples-20 of {other}; {usual} of the other 2"
    ]
    assert "protocol" not in normlab("status", str(run), str(alike)).stdout


def test_status_speaks_json(normlab: Command, run: Path) -> None:
    (described,) = json.loads(normlab("status", "--json", str(run)).stdout)["runs"]

    assert (described["state"], described["status"]["step"]) == ("done", 3)
    assert described["evaluation"]["generator"] == "averaged"
    assert described["continue"] is None


def test_status_calls_a_killed_run_interrupted_and_says_how_to_continue(normlab: Command, run: Path) -> None:
    status = run / "status.json"
    status.write_text(status.read_text().replace('"done"', '"running"'))
    shown = normlab("status", str(run))

    assert "interrupted" in shown.stdout
    assert f"to continue: normlab train resume={run}" in shown.stdout


def test_status_shows_a_broken_folder_as_broken(normlab: Command, run: Path) -> None:
    (run / "config.yaml").write_text("name: [")

    assert "broken" in normlab("status", str(run)).stdout


def test_verify_finds_a_flipped_bit(normlab: Command, run: Path) -> None:
    sound = normlab("verify", str(run))
    newest = max((run / "checkpoints").glob("*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))
    damaged = normlab("verify", str(run))

    assert sound.exit_code == 0
    assert "state digest of step 3: " in sound.stdout
    assert damaged.exit_code == 4
    assert str(newest) in damaged.stderr


def test_verify_looks_beyond_the_bytes(normlab: Command, run: Path) -> None:
    checkpoints = Checkpoints(run / "checkpoints")
    state = checkpoints.load(3)
    state["generator"] = {name: value.half() for name, value in state["generator"].items()}
    checkpoints.save(3, state)
    with (run / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 0, "generator": "live"}\n')
    (run / "generator.safetensors").write_bytes(b"nothing")
    wrong = normlab("verify", str(run))

    assert wrong.exit_code == 4
    first, second, third = wrong.stderr.splitlines()
    assert "step_00000003.pt: generator." in first
    assert "evaluations.jsonl: has steps twice or out of order" in second
    assert "generator.safetensors: cannot be read as safetensors" in third


def test_a_checkpoint_too_large_or_unlike_the_runs_own_is_refused_by_every_verb(normlab: Command, run: Path) -> None:
    checkpoints = Checkpoints(run / "checkpoints")
    state = checkpoints.load(3)
    checkpoints.save(3, {**state, "generator": {name: value.half() for name, value in state["generator"].items()}})
    misshapen = [normlab(verb, str(run)) for verb in ("verify", "sample", "clean")]
    checkpoints.save(3, {**state, "padding": torch.zeros(10**6)})
    padded = [normlab(*words, str(run)) for words in (["verify"], ["verify", "--digest-only"], ["clean"])]
    checkpoints.save(3, {name: value for name, value in state.items() if not name.endswith("_optimizer")})
    bare = [normlab(verb, str(run)) for verb in ("verify", "clean")]

    for refused, says in ((misshapen, "float16"), (padded, "more than a state of this run takes"), (bare, "optimizer")):
        assert [ended.exit_code for ended in refused] == [4] * len(refused)
        assert all(says in ended.stderr and ended.stderr.count("\n") == 1 for ended in refused)


def test_verify_speaks_json_with_the_digest_alone_on_demand(normlab: Command, run: Path) -> None:
    described = json.loads(normlab("verify", "--json", str(run)).stdout)

    assert [row["ok"] for row in described["checkpoints"]] == [True] * len(described["checkpoints"])
    assert normlab("verify", "--digest-only", str(run)).stdout == described["digest"] + "\n"


def test_clean_drops_the_optimizers_of_a_finished_run_which_cannot_be_extended_then(
    normlab: Command, run: Path
) -> None:
    sampled = normlab("sample", str(run), "--out", "before.png")
    size = sum(file.stat().st_size for file in (run / "checkpoints").iterdir())
    cleaned = normlab("clean", str(run), "--json")
    again = normlab("clean", str(run), "--json")
    assert (sampled.exit_code, cleaned.exit_code, again.exit_code) == (0, 0, 0), cleaned.stderr
    (row,) = json.loads(cleaned.stdout)["runs"]
    left = sum(file.stat().st_size for file in (run / "checkpoints").iterdir())
    # The manifests' sizes change by a digit or two.
    assert row["freed_bytes"] == pytest.approx(size - left, abs=100)
    assert left < 0.75 * size
    assert json.loads(again.stdout)["runs"][0]["freed_bytes"] == 0

    assert normlab("verify", str(run)).exit_code == 0
    assert normlab("sample", str(run), "--out", "after.png").exit_code == 0
    assert Path("before.png").read_bytes() == Path("after.png").read_bytes()
    extended = normlab("train", f"resume={run}", "train.until=9 steps")
    assert extended.exit_code == 4
    assert "it was cleaned of what training needs" in extended.stderr


def test_clean_refuses_a_run_that_has_not_ended(normlab: Command, run: Path) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "stopped"}))
    refused = normlab("clean", str(run))
    assert refused.exit_code == 2
    assert "the run is stopped" in refused.stderr


def test_sample_draws_the_same_images_from_a_run_and_from_its_exported_generator(
    normlab: Command, run: Path, tmp_path: Path
) -> None:
    one, other = tmp_path / "run.png", tmp_path / "file.png"
    assert normlab("sample", str(run), "--count", "10", "--columns", "5", "--out", str(one)).exit_code == 0
    file = run / "generator.safetensors"
    assert normlab("sample", str(file), "--count", "10", "--columns", "5", "--out", str(other)).exit_code == 0

    assert one.read_bytes() == other.read_bytes()
    assert Image.open(one).size == (5 * 34 + 2, 2 * 34 + 2)


def test_load_gives_the_generator_to_python(run: Path) -> None:
    generator = package.load(run)
    images = generator(torch.randn(3, generator.latent_size))

    assert images.shape == (3, 1, 32, 32)
    assert not generator.training


@pytest.mark.parametrize("verb", ["status", "report", "verify", "sample"])
def test_a_folder_without_a_run_is_refused(normlab: Command, verb: str) -> None:
    refused = normlab(verb, "/no/such/folder")

    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: /no/such/folder: ")


def test_list_shows_groups_choices_and_parameters(normlab: Command) -> None:
    everything, one = normlab("list").stdout, normlab("list", "technique", "spectral").stdout

    assert all(word in everything for word in ("technique", "spectral", "dcgan", "mnist", "wasserstein", "cosine"))
    assert "power_iterations = 1    (a whole number at least 1 and at most 1000)" in one
    assert "Miyato" in one


def test_list_speaks_json(normlab: Command) -> None:
    described = json.loads(normlab("list", "--json", "optimizer").stdout)

    assert described["optimizer"]["adam"]["parameters"]["betas"]["default"] == [0.5, 0.999]


@pytest.mark.parametrize(("words", "near"), [(["techniqe"], "technique"), (["technique", "spectrl"], "spectral")])
def test_list_refuses_an_unknown_name_with_the_nearest(normlab: Command, words: list[str], near: str) -> None:
    refused = normlab("list", *words)

    assert refused.exit_code == 2
    assert f"did you mean '{near}'?" in refused.stderr


def test_hydra_shows_a_runs_whole_configuration(normlab: Command, outputs: Path) -> None:
    shown = normlab("train", "--cfg", "job", "seed=5", "normalization.generator=layer")

    assert shown.exit_code == 0
    assert "seed: 5" in shown.stdout
    assert "  generator:\n    name: layer\n" in shown.stdout
    assert not outputs.exists()


def test_check_starts_nothing(normlab: Command, outputs: Path) -> None:
    checked = normlab(*QUICK, "--check")

    assert checked.exit_code == 0
    assert "3 steps on cpu" in checked.stdout
    assert not outputs.exists()


def test_the_module_runs_as_the_command_does() -> None:
    shown = subprocess.run([sys.executable, "-m", "normlab", "--help"], capture_output=True, text=True, check=True)

    assert "normlab train" in shown.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sample"], "error: sample: the following arguments are required: RUN|FILE.safetensors"),
        (["sample", "run", "--count", "x"], "error: --count: invalid count value: 'x'"),
        (["status", "--jsno"], "error: status: unrecognized arguments: --jsno"),
        (["status", "--watch", "--json"], "error: --watch: shows a table, not JSON"),
        (["status", "--watch=0"], "error: --watch: got '0', no number of seconds"),
        (["train", "--config-dir"], "error: --config-dir: expected one argument"),
    ],
)
def test_a_wrong_word_is_refused_in_one_line(normlab: Command, outputs: Path, words: list[str], says: str) -> None:
    refused = normlab(*words)

    assert refused.exit_code == 2
    assert refused.stderr.startswith(says)
    assert refused.stderr.count("\n") == 1


def test_watching_ends_with_the_runs(normlab: Command, outputs: Path) -> None:
    normlab(*QUICK)
    watched = normlab("status", "--watch", "outputs")

    assert watched.exit_code == 0
    assert watched.stdout.count("done") == 1


def test_list_shows_the_parts_of_plugins(normlab: Command, tmp_path: Path, outputs: Path) -> None:
    module = "from normlab.losses import LOSSES, Loss\n\n@LOSSES.register('mine')\ndef mine():\n    'My own loss.'\n"
    (tmp_path / "my_own_parts.py").write_text(module)
    shown = normlab("list", "loss", "mine", "--plugins", "my_own_parts")

    assert shown.exit_code == 0, shown.stderr
    assert "My own loss." in shown.stdout
    assert normlab("list", "--plugins", "no_such_module").exit_code == 2


@pytest.mark.parametrize("words", [["list"], ["train", "--cfg", "job"], ["status"]], ids=lambda words: words[0])
def test_a_reader_that_has_gone_is_no_error(outputs: Path, words: list[str]) -> None:
    outputs.mkdir()
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "normlab", *words]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writer)

    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_look_at_a_run_tells_whether_it_would_go_on(normlab: Command, outputs: Path) -> None:
    normlab(*QUICK)
    complete = normlab(*QUICK, "--check")
    further = normlab(*QUICK, "train.until=5 steps", "--check")

    assert (complete.exit_code, further.exit_code) == (0, 0)
    assert "already complete" in complete.stdout
    assert "would continue from step 3" in further.stdout


def test_a_look_at_a_run_tells_that_the_disk_is_too_small(normlab: Command, outputs: Path) -> None:
    refused = normlab(*QUICK, "architecture.width=16000", "--check")

    assert refused.exit_code == 5
    assert "3 checkpoints need" in refused.stderr
    assert not outputs.exists()
