"""`normlab prepare`: all that runs share, made ahead of time, and what scores are worth on it."""

import logging
from typing import Any

import torch

from normlab import assemble, composition, launching, scoring
from normlab.errors import DONE
from normlab.outputs import plain_json
from normlab.reports import tables
from normlab.verbs.arguments import Arguments


def run(arguments: list[str]) -> int:
    """Fetch and pack the data, fit or fetch the features, keep the real statistics; print a table of known scores."""
    parser = Arguments("prepare", "Fetch and pack a data set, ready its features and real statistics, ahead of time.")
    help = "as for normlab train, such as dataset=mnist dataset.download=true"
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=help)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_intermixed_args(arguments)
    settings = launching.checked(*composition.configure(options.overrides))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    dataset = assemble.open_dataset(settings)
    scorer = scoring.build_scorer(settings, dataset, assemble.choose_device(settings.device))
    about: dict[str, Any] = {
        "dataset": dataset.name,
        "train": len(dataset.train),
        "held_out": len(dataset.held_out),
        "fingerprint": dataset.fingerprint,
        "features": None if scorer is None else scorer.info,
        "protocol": None if scorer is None else scorer.evaluator.protocol,
    }
    if not options.json:
        print(tables.columns(about))
    for note in dataset.notes:
        logging.getLogger(__name__).info("%s", note)
    rows = [] if scorer is None else list(scoring.known_scores(scorer))
    print(plain_json.dump({**about, "known": rows}) if options.json else f"\n{tables.render(rows)}")
    return DONE
