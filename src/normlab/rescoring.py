"""Score the checkpoints of a run again: all of them by any protocol, the best one before it is called so."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from normlab import progress
from normlab.assemble import build_generator, build_state, choose_device, image_spec, open_dataset
from normlab.config import RunConfig
from normlab.data.images import Dataset
from normlab.errors import DONE, CheckpointError, DataError
from normlab.evaluation.batching import never
from normlab.evaluation.evaluator import PICTURED, Evaluator, restandardised
from normlab.evaluation.reconstruction import Search
from normlab.networks.network import Generator
from normlab.outputs import plain_json
from normlab.outputs.checkpoints import Checkpoints
from normlab.outputs.grids import save_grid, save_image
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import JsonLines
from normlab.scoring import Scorer, build_scorer
from normlab.training.stopping import Stopped
from normlab.training.trainer import Trainer

log = logging.getLogger(__name__)

# The generators of a checkpoint, and what rows call them.
KINDS = {"generator": "live", "averaged": "averaged"}


def steps_to_score(run_dir: RunDir, which: str) -> list[int]:
    """Return the steps of a run's checkpoints that `best`, `last`, `all` or a number names.

    Raises CheckpointError where there is none such.
    """
    checkpoints = Checkpoints(run_dir.checkpoints)
    steps = checkpoints.steps()
    best = plain_json.read(run_dir.best).get("step")
    named = {"all": steps, "last": steps[-1:], "best": [step for step in steps if step == best]}
    chosen = named.get(which, [step for step in steps if str(step) == which])
    if not chosen:
        there = ", ".join(map(str, steps)) or "none"
        problem = f"holds no checkpoint that is '{which}'"
        raise CheckpointError(str(run_dir.checkpoints), problem, f"there are best, last, all and the steps {there}")
    return chosen


def score_again(config: RunConfig, run_dir: RunDir, steps: list[int], pictures: bool) -> Iterator[dict[str, Any]]:
    """Yield rows of scores of the generators at some steps of a run, and keep them in its `scores.jsonl`.

    What is there already, by the same protocol and as many repeats, is not scored again.  pictures: leave some of each
    generator beside the samples, and say where. Raises DataError for other images than the run's.
    """
    device, dataset = choose_device(config.device), open_dataset(config)
    if progress.has_other_images(run_dir, dataset.fingerprint):
        raise DataError("dataset.root", "the images differ from those that the run began with", "set it back")
    scorer = build_scorer(config, dataset, device)
    assert scorer is not None, "a configuration without features is refused before"
    checkpoints, kept = Checkpoints(run_dir.checkpoints), JsonLines(run_dir.scores)
    own = build_state(config, image_spec(dataset), device)
    for step in tqdm(steps, desc="checkpoints", leave=False, disable=True if len(steps) == 1 else None):
        state = checkpoints.load(step, own.most_bytes())
        for name, kind in KINDS.items():
            if state[name] is None:
                continue
            own.generator.load_state_dict(state[name])
            place = {"step": step, "images_seen": state["images_seen"], "generator": kind}
            asked = {**place, "protocol": scorer.evaluator.protocol, "of_repeats": config.evaluation.repeats}
            row = next((row for row in kept.rows() if asked.items() <= row.items() and _is_whole(row)), None)
            if row is None:
                row = {**asked, **(scorer(own.generator, never) or {})}
                kept.append(row)
            more = draw(scorer.evaluator, own.generator, run_dir.samples, f"{kind}_{step:08d}") if pictures else {}
            yield {**row, **more}


def _is_whole(row: dict[str, Any]) -> bool:
    """Return whether memory sufficed for every score of a row; a score of a single part has no spread anyway."""
    missing = [name for name, value in row.items() if value is None and not name.endswith("score_spread")]
    return "out_of_memory" not in row["flags"] and not missing


def draw(evaluator: Evaluator, generator: Generator, folder: Path, name: str) -> dict[str, Any]:
    """Write pictures of a generator: samples beside their nearest training images, and of what it can reconstruct.

    Returns where they are, and the authenticity of the samples; nothing of points, of which there is no picture.
    """
    if evaluator.dataset.of_points:
        return {}
    copy = restandardised(generator, evaluator.seed, evaluator.device)
    picture, authentic = evaluator.neighbours(copy)
    found: dict[str, Any] = {"authenticity": authentic, "neighbours": str(folder / f"neighbours_{name}.png")}
    save_image(picture, Path(found["neighbours"]))
    pairs = evaluator.reconstruct(copy, replace(evaluator.search or Search(), count=PICTURED)).pairs
    found["reconstructions"] = str(folder / f"reconstructions_{name}.png")
    save_grid(pairs.flatten(0, 1), Path(found["reconstructions"]), columns=pairs.shape[1])
    return found


def confirm_best(config: RunConfig, dataset: Dataset, scorer: Scorer, trainer: Trainer, run_dir: RunDir) -> None:
    """Score the best checkpoint of a run from other latents and leave both scores in `best.json`.

    The lowest of several scores is low by luck, too. What is there already is not made again, and a step without a
    sound checkpoint is passed over with a warning. Raises Stopped if told to stop meanwhile.
    """
    best = trainer.best()
    if best is None or plain_json.read(run_dir.best).get("chosen") == best:
        return
    try:
        state = trainer.checkpoints.load(best["step"])
    except CheckpointError as error:  # the disk may have refused it, and the run is as complete without
        log.warning("the best step, %s, is not scored again: %s", f"{best['step']:,}", error.complaints[0].problem)
        return
    generator = build_generator(config, image_spec(dataset))
    generator.load_state_dict(next(state[name] for name, kind in KINDS.items() if kind == best["generator"]))
    again = scorer(generator.to(trainer.step.device), trainer.stop.requested, "best")
    if again is None:
        raise Stopped(trainer.stop.exit_code or DONE)
    plain_json.write(run_dir.best, {"step": best["step"], "generator": best["generator"], **again, "chosen": best})
