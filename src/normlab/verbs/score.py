"""`normlab score REAL FAKE`: the metrics of two sets of images, without any training."""

from pathlib import Path

import torch

from normlab import assemble, composition, scoring
from normlab.config import RunConfig
from normlab.errors import DONE, Complaint, ConfigurationError
from normlab.outputs import plain_json
from normlab.reports import tables
from normlab.verbs.arguments import Arguments, keys_of

# Of the settings of a run those that a score can depend on: it draws no samples and opens no data set.
TAKEN = (
    *(f"evaluation.{key}" for key in ("features", "weights", "kept", "splits", "batch_size")),
    *("dataset", "device", "threads", "plugins", "debug"),
)
WORDS = (
    "such as evaluation.features=inception-64, or evaluation.features=classifier dataset=mnist for that data set's "
    "own classifier (default Inception-2015)"
)


def run(arguments: list[str]) -> int:
    """Print the scores of FAKE against REAL."""
    parser = Arguments("score", "Score images against others: folders, .zip, .npy or .npz files.")
    parser.add_argument("real", metavar="REAL", help="the images that count as real")
    parser.add_argument("fake", metavar="FAKE", help="the images to score")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=WORDS)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_intermixed_args(arguments)
    real, fake, overrides = _divided([options.real, options.fake, *options.overrides])
    settings, complaints = composition.configure(overrides)
    complaints += _without_effect(settings, overrides)
    complaints += assemble.import_plugins(settings) + scoring.check_features(settings)
    composition.refuse(complaints)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    row = scoring.score_sets(settings, real, fake, assemble.choose_device(settings.device))
    print(plain_json.dump(row) if options.json else tables.columns(row))
    return DONE


def _divided(words: list[str]) -> tuple[Path, Path, list[str]]:
    """Return the two paths among the words, and the settings; raise ConfigurationError where a path is missing."""
    given = [word for word in words if "=" in word and not Path(word).exists()]
    paths = [word for word in words if word not in given]
    if len(paths) < 2:
        missing = "FAKE" if paths else "REAL"
        remedy = "name two sets of images: folders, .zip, .npy or .npz files"
        raise ConfigurationError(missing, "is missing: only settings follow", remedy)
    real, fake, *others = paths
    return Path(real), Path(fake), [*others, *given]


def _without_effect(settings: RunConfig, overrides: list[str]) -> list[Complaint]:
    """Return a complaint for each setting that would change nothing, and for features that score nothing."""
    complaints = [
        Complaint(key, "changes nothing in a score", f"leave it out; {', '.join(TAKEN)} matter")
        for key in keys_of(overrides)
        if key not in TAKEN and key != "evaluation"  # which only chooses whether there are features, see below
    ]
    features = settings.evaluation.features
    if features == "none":
        remedy = "give evaluation.features=inception, or leave it out, which means the same"
        complaints.append(Complaint("evaluation.features", "is none, which scores nothing", remedy))
    elif scoring.of_inception(features) and "dataset" in keys_of(overrides):
        remedy = f"add evaluation.features=classifier for the classifier of '{settings.dataset.name}'"
        complaints.append(Complaint("dataset", "changes nothing in a score by Inception", remedy))
    return complaints
