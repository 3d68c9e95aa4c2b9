"""Runs that belong together: by what they are measured by, and by what they are."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from normlab import config
from normlab.errors import ConfigurationError
from normlab.outputs.run_dir import ENDINGS
from normlab.registry import unknown
from normlab.reports.convergence import protocol_of
from normlab.reports.runs import Run

EVALUATION = "evaluation."
TECHNIQUES = ("normalization.generator.name", "normalization.discriminator.name")


@dataclass(frozen=True)
class Arm:
    """Runs that differ in the seed alone, or in what they are not told apart by.

    settings: what determines how all of them train, by dotted key, and the names of the penalties.  label: as `labels`
    makes it.  pooled: the keys in which its runs differ.
    """

    label: str
    settings: Mapping[str, Any]
    runs: Sequence[Run]
    pooled: Sequence[str] = ()

    def functions(self) -> dict[str, Any]:
        """Return the settings that say which functions are minimised."""
        return {key: value for key, value in self.settings.items() if key.split(".")[0] in ("loss", "penalty")}


class Kind(NamedTuple):
    """What runs must have in common to stand in one table; `within` are settings that were asked for, in words."""

    dataset: str
    precision: str
    within: str
    protocol: str | None


def by_kind(runs: Sequence[Run], within: Sequence[str] = ()) -> dict[Kind, list[Run]]:
    """Return runs by kind; one without a protocol goes with the most that are like it otherwise.

    within: keys in which runs of one kind have the same values, or parts of them, as `keys_of` takes them; by these
    they are in order.
    """
    told = [settings_of(run) for run in runs]
    keys = keys_of("--within", within, told)
    asked = [{key: own[key] for key in keys if key in own} for own in told]
    techniques = [key for key in TECHNIQUES if len({own.get(key) for own in asked}) > 1]
    names = _names([*techniques, *_told(list({json.dumps(own): own for own in asked}.values()))])
    groups: dict[Kind, list[Run]] = {}
    for run, settings in zip(runs, told, strict=True):
        words = " ".join(_words(settings, names))
        kind = Kind(settings["dataset.name"], str(settings["precision"]), words, protocol_of(run.evaluations))
        groups.setdefault(kind, []).append(run)
    groups = dict(sorted(groups.items(), key=lambda item: _by_numbers(item[0].within)))
    for kind in list(groups):
        others = [key for key in groups if key[:3] == kind[:3] and key.protocol is not None]
        if kind.protocol is None and others:
            groups[max(others, key=lambda key: len(groups[key]))] += groups.pop(kind)
    return groups


def keys_of(option: str, parts: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of settings that are parts (`optimizer.lr`), or in one (`normalization`).

    Raises ConfigurationError, in the name of an option, for a part that is none of any.
    """
    known = dict.fromkeys(key for own in settings for key in own)
    for part in parts:
        if not any(_is_of(key, part) for key in known):
            raise ConfigurationError.of([unknown(option, part, [*known], "a setting")])
    return [key for key in known if any(_is_of(key, part) for part in parts)]


def same_settings(runs: Iterable[Run]) -> list[list[Run]]:
    """Return the runs in lists of those that are one run in several folders, the one to go by first.

    That is one that has ended, of several the one that got furthest, of equals one that was not set aside by
    `fresh=true`. Runs that were to be evaluated otherwise are one, too, where their numbers are of the same protocol
    all the same.
    """
    alike = _gathered(([run] for run in runs), lambda run: [settings_of(run), _seed(run), _evaluation(run)])
    return _gathered(
        (own for group in alike for own in _by_protocol(group)),
        lambda run: [settings_of(run), _seed(run), protocol_of(run.evaluations) or _evaluation(run)],
    )


def arms(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Arm]:
    """Return the arms that runs make, in the order of their labels, numbers in theirs.

    by: keys that tell arms apart; runs that differ in others alone are then one arm.
    """
    told = {run.path: settings_of(run) for run in runs}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        own = told[run.path]
        chosen = {key: value for key, value in own.items() if not by or key in by}
        groups.setdefault(json.dumps(chosen, sort_keys=True), []).append(run)
    made: list[tuple[dict[str, Any], list[Run], list[str]]] = []
    for group in groups.values():
        first, *others = (told[run.path] for run in group)
        pooled = [
            key
            for key in dict.fromkeys(key for settings in (first, *others) for key in settings)
            if any(settings.get(key, ...) != first.get(key, ...) for settings in others)
        ]
        made.append(({key: value for key, value in first.items() if key not in pooled}, group, pooled))
    names = labels([settings for settings, _, _ in made])
    found = [Arm(label, *parts) for label, parts in zip(names, made, strict=True)]
    return sorted(found, key=lambda arm: _by_numbers(arm.label))


def labels(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for the settings of each arm its techniques, and whatever else tells it from the others.

    Keys are told by their last words, `lr` or `D.alpha`, unless two of them end alike.
    """
    names = _told(arms)
    return [_label(arm, names) for arm in arms]


def short_labels(arms: Sequence[Arm], without: str | None = None) -> list[str]:
    """Return labels without what all arms have in common, for a picture; both techniques where both differ.

    without: a key that is told otherwise.
    """
    varying = [key for key in TECHNIQUES if len({arm.settings.get(key) for arm in arms}) > 1]
    names = _names(key for key in _differing([arm.settings for arm in arms]) if key != without)
    found: list[str] = []
    for arm in arms:
        words = _words(arm.settings, names)
        pair = [_technique(arm.settings, varying[0])] if len(varying) == 1 else _pair(arm.settings)
        found.append(" ".join(words if not varying and words else [*pair, *words]))
    return found if len({*found}) == len(found) else [arm.label for arm in arms]


def baseline(arms: Sequence[Arm], wanted: Mapping[str, str]) -> Arm:
    """Return the arm whose settings are as wanted.

    By default it is one whose discriminator has no technique, and no penalty if there is such a one, with the most
    runs; or else the first of all.  wanted: values as on the command line, by dotted key, where a part's `.name` may be
    left out, or by what labels call it. Raises ConfigurationError if a key is none of theirs, or not exactly one arm
    has the values.
    """
    if not wanted:
        bare = [arm for arm in arms if arm.settings.get(TECHNIQUES[1]) == "none"]
        return max(bare or arms[:1], key=lambda arm: (arm.settings.get("penalty") == "none", len(arm.runs)))
    differing = _differing([arm.settings for arm in arms])
    named = dict(zip("GD", TECHNIQUES, strict=True))
    named |= {name: key for key, name in _told([arm.settings for arm in arms]).items()}
    keys = {key: named.get(key, key if any(key in arm.settings for arm in arms) else f"{key}.name") for key in wanted}
    for key, full in keys.items():
        if not any(full in arm.settings for arm in arms):
            raise ConfigurationError.of([unknown("--baseline", key, [*TECHNIQUES, *differing], "a setting")])
    fitting = [arm for arm in arms if all(_is(arm.settings.get(keys[key]), text) for key, text in wanted.items())]
    words = " ".join(f"{key}={text}" for key, text in wanted.items())
    if not fitting:
        raise ConfigurationError("--baseline", f"no arm has {words}", f"there are {_listed(arms)}")
    if len(fitting) > 1:
        raise ConfigurationError(
            "--baseline", f"{words} fits {_listed(fitting)}", "add the setting that they differ in"
        )
    return fitting[0]


def _by_numbers(text: str) -> list[Any]:
    """Return what sorts texts by the numbers in them: `batch_size=64` before `batch_size=256`."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _by_protocol(runs: Sequence[Run]) -> list[list[Run]]:
    """Return runs by protocol, which other images or features change; one that tells none goes with the first."""
    told = {run.path: protocol_of(run.evaluations) for run in runs}
    known = [*dict.fromkeys(protocol for protocol in told.values() if protocol is not None)] or [None]
    return [[run for run in runs if (told[run.path] or known[0]) == protocol] for protocol in known]


def _gathered(groups: Iterable[list[Run]], key: Callable[[Run], Any]) -> list[list[Run]]:
    """Return groups of runs, the first of each the one to go by, joined where those have the same key."""
    joined: dict[str, list[Run]] = {}
    for group in groups:
        joined.setdefault(json.dumps(key(group[0]), sort_keys=True), []).extend(group)
    return [sorted(group, key=_merit, reverse=True) for group in joined.values()]


def _told(arms: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the keys that labels tell, beside the techniques' names, with what they call them."""
    names = _names(_differing(arms))
    if len({_label(arm, names) for arm in arms}) == len(arms):
        return names
    # Some arm has a setting that another has no word for.
    partly = [key for arm in arms for key in arm if any(key not in other for other in arms)]
    return _names(dict.fromkeys([*names, *partly]))


def _label(arm: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return " ".join([*_pair(arm), *_words(arm, names)])


def _pair(arm: Mapping[str, Any]) -> list[str]:
    return [f"{side}:{_technique(arm, key)}" for side, key in zip("GD", TECHNIQUES, strict=True)]


def _technique(arm: Mapping[str, Any], key: str) -> str:
    return str(arm.get(key, "several"))


def _words(arm: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    return [f"{name}={str(arm[key]).replace(', ', ',')}" for key, name in names.items() if key in arm]


def _names(keys: Iterable[str]) -> dict[str, str]:
    """Return what keys are called in a label."""
    last = {key: _last_words(key) for key in keys}
    return {key: name if [*last.values()].count(name) == 1 else key.removesuffix(".name") for key, name in last.items()}


def _last_words(key: str) -> str:
    *others, last = key.removesuffix(".name").split(".")
    network = next((word[0].upper() for word in others if word in ("generator", "discriminator")), None)
    return f"{network}.{last}" if network else last


def _is_of(key: str, part: str) -> bool:
    return key == part or key.startswith(f"{part}.")


def _differing(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys, but for the techniques' names, that arms have and have differently.

    What one arm has and another does not is a parameter of a part that only the first has, and goes with its name; and
    so does a parameter of the same name that two parts have.
    """

    def differs(key: str) -> bool:
        name = f"{key.rpartition('.')[0]}.name"
        values: dict[Any, set[str]] = {}
        for arm in arms:
            if key in arm:
                values.setdefault(None if key == name else arm.get(name), set()).add(json.dumps(arm[key]))
        return any(len(own) > 1 for own in values.values())

    return [key for key in dict.fromkeys(key for arm in arms for key in arm if key not in TECHNIQUES) if differs(key)]


def settings_of(run: Run) -> dict[str, Any]:
    """Return what determines how a run trains, but for its seed.

    How it is evaluated does not, and may change on its way: its numbers are of the protocol that their rows tell.
    """
    assert run.settings is not None
    own = {
        key: value
        for key, value in config.identity(run.settings).items()
        if key != "seed" and not key.startswith(EVALUATION)
    }
    return own | {"penalty": "+".join(sorted(run.settings.penalty)) or "none"}


def _evaluation(run: Run) -> dict[str, Any]:
    assert run.settings is not None
    return {key: value for key, value in config.identity(run.settings).items() if key.startswith(EVALUATION)}


def _seed(run: Run) -> int:
    assert run.settings is not None
    return run.settings.seed


def _merit(run: Run) -> tuple[bool, int, bool]:
    return (run.state in ENDINGS, 0 if run.status is None else run.status.step, ".old-" not in run.path.name)


def _is(value: Any, text: str) -> bool:
    """Return whether a setting has the value that a text on the command line stands for."""
    if isinstance(value, float):  # YAML does not take 2e-4 for a number
        with suppress(ValueError):
            return float(text) == value
    with suppress(yaml.YAMLError):
        return str(value) == text or value == yaml.safe_load(text)
    return False


def _listed(arms: Sequence[Arm]) -> str:
    return ", ".join(f"'{arm.label}'" for arm in arms)
