"""`normlab score REAL FAKE`: the metrics of two sets of images, without any training."""

from pathlib import Path

import torch

from normlab import assemble, composition, scoring
from normlab.errors import DONE, Complaint
from normlab.outputs import plain_json
from normlab.reports import tables
from normlab.verbs.arguments import Arguments, other_keys

TAKEN = ("evaluation", "dataset", "device", "threads", "plugins", "debug")


def run(arguments: list[str]) -> int:
    """Print the scores of FAKE against REAL."""
    parser = Arguments("score", "Score images against others: folders, .zip, .npy or .npz files.")
    parser.add_argument("real", metavar="REAL", type=Path, help="the images that count as real")
    parser.add_argument("fake", metavar="FAKE", type=Path, help="the images to score")
    help = "such as evaluation.features=inception-64, or dataset=mnist for its classifier (default Inception-2015)"
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=help)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_intermixed_args(arguments)
    settings, complaints = composition.configure(options.overrides)
    for key in other_keys(options.overrides, TAKEN):
        complaints.append(Complaint(key, "changes nothing in a score", f"leave it out; {', '.join(TAKEN)} matter"))
    complaints += assemble.import_plugins(settings) + scoring.check_features(settings)
    composition.refuse(complaints)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    row = scoring.score_sets(settings, options.real, options.fake, assemble.choose_device(settings.device))
    print(plain_json.dump(row) if options.json else tables.columns(row))
    return DONE
