"""Where the runs of a report come from: in what they differ, what they ran on, what trained them."""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from normlab import config
from normlab.config import RunConfig
from normlab.outputs import plain_json
from normlab.outputs.run_dir import RunDir
from normlab.reports.arms import Arm, settings_of
from normlab.reports.comparison import Comparison
from normlab.reports.runs import Run
from normlab.reports.tables import Row, Table

SETTINGS = "settings"  # name of a table
TUNING = "tuning.json"  # in the folder of a study whose arms were tuned: what they chose, and from what


def settings_table(comparisons: Mapping[str, Comparison]) -> Table:
    """Return every setting in which runs differ, with the values that each arm has of it, and how many runs it has."""
    arms = [(name, result.arm) for name, each in comparisons.items() for result in each.results]
    settings = [[_settings(run.settings) for run in arm.runs if run.settings is not None] for _, arm in arms]
    every = [one for own in settings for one in own]
    keys = [
        key
        for key in dict.fromkeys(key for one in every for key in one)
        if len({_as_json(one, key) for one in every}) > 1
    ]
    rows: list[Row] = []
    for (name, arm), own in zip(arms, settings, strict=True):
        values = {key: {_as_json(one, key): one[key] for one in own if key in one} for key in keys}
        listed = {key: _listed([*each.values()]) for key, each in values.items()}
        rows.append(
            {**_of(name, comparisons), "arm": arm.label, "runs": len(arm.runs), "seeds": _seeds(arm.runs), **listed}
        )
    same = "All other settings are the same in all runs." if keys else "The runs differ in nothing but the seed."
    return Table(name=SETTINGS, title="Settings in which the runs differ", rows=rows, lines=[same])


def in_words(settings: Table) -> Table:
    """Return the table of settings with those of an arm in one cell, for there may be many."""
    first = ("of", "arm", "runs", "seeds")
    rows: list[Row] = []
    for row in settings.rows:
        words = [
            f"{key.removesuffix('.name')}={value}"
            for key, value in row.items()
            if key not in first and value is not None
        ]
        rows.append({**{key: row[key] for key in first if key in row}, "settings": "\n".join(words)})
    return replace(settings, rows=rows)


def environment_table(runs: Iterable[Run]) -> Table:
    """Return what the runs ran on, a line for each fact, and how many runs it holds for where it differs."""
    facts: dict[str, Counter[str]] = {}
    for run in runs:
        for name, value in _facts(plain_json.read(RunDir(run.path).environment)).items():
            facts.setdefault(name, Counter())[value] += 1
    rows = [{"what": name, "value": _counted(values)} for name, values in facts.items()]
    return Table(name="environment", title="What the runs ran on", rows=rows)


def runs_table(comparisons: Mapping[str, Comparison]) -> Table:
    """Return every run with its arm, seed, state and final value."""
    rows: list[Row] = [
        {
            **_of(name, comparisons),
            "arm": result.arm.label,
            "seed": run.settings.seed if run.settings else None,
            "state": run.state,
            comparison.terms.metric: finals.get(run.path),
            "steps": run.status.step if run.status else None,
            "run": run.path.name,
        }
        for name, comparison in comparisons.items()
        for result in comparison.results
        for finals in [{each.run.path: each.final.value for each in result.ended}]
        for run in result.arm.runs
    ]
    return Table(name="runs", title="Every run", rows=rows)


def commands_table(comparisons: Mapping[str, Comparison], words_of: Callable[[RunConfig], list[str]]) -> Table:
    """Return the commands that train the runs of each arm, by the words that give a run's settings."""
    rows: list[Row] = []
    for name, comparison in comparisons.items():
        for arm in (result.arm for result in comparison.results):
            for own in _alike(arm):
                words = words_of(replace(own[0], seed=RunConfig().seed))
                seeds = sorted({settings.seed for settings in own})
                several = ["-m"] if len(seeds) > 1 else []
                command = shlex.join(["normlab", "train", *several, *words, f"seed={','.join(map(str, seeds))}"])
                rows.append({**_of(name, comparisons), "arm": arm.label, "command": command})
    return Table(
        name="commands", title="Commands that train the arms", rows=rows, lines=["Paths of data are left out."]
    )


def tuning_tables(runs: Iterable[Run]) -> list[Table]:
    """Return of each study that was tuned what its arms chose, and from what."""
    tables: list[Table] = []
    for folder in dict.fromkeys(run.path.parent for run in runs):
        told = plain_json.read(folder / TUNING)
        rows = [
            {key: _plain(value) for key, value in row.items()} for row in _list(told, "arms") if isinstance(row, dict)
        ]
        if rows:
            values = {key: _plain(_list(_dict(told, "grid"), key)) for key in _dict(told, "grid")}
            grid = "; ".join(f"{key} {listed}" for key, listed in values.items())
            chosen_on = f"By the mean final {told.get('metric')} of seeds {_plain(_list(told, 'seeds'))}"
            name = "tuning" if not tables else f"tuning_{len(tables) + 1}"
            lines = [f"{chosen_on}{f', from {grid}' if grid else ''}."]
            tables.append(Table(name=name, title="What each arm chose", rows=rows, lines=lines))
    return tables


def _list(told: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list that a file holds; an empty one where there is none to be read."""
    value = told.get(key)
    return value if isinstance(value, list) else []


def _dict(told: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = told.get(key)
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _alike(arm: Arm) -> list[list[RunConfig]]:
    """Return the settings of an arm's runs in lists of those that differ in the seed alone."""
    alike: dict[str, list[RunConfig]] = {}
    for run in arm.runs:
        if run.settings is not None:
            own = settings_of(run) if arm.pooled else {}
            alike.setdefault(json.dumps([own.get(key) for key in arm.pooled]), []).append(run.settings)
    return [*alike.values()]


def _seeds(runs: Sequence[Run]) -> str:
    seeds = sorted({run.settings.seed for run in runs if run.settings is not None})
    whole = len(seeds) > 2 and seeds == [*range(seeds[0], seeds[-1] + 1)]
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _facts(told: Mapping[str, Any]) -> dict[str, str]:
    git, versions = _dict(told, "git"), _dict(told, "versions")
    commit = f"{str(git.get('commit'))[:12]}{', with changes' if git.get('dirty') else ''}" if git else None
    plain = {name: told.get(name) for name in ("device_name", "threads", "precision", "platform", "cuda")}
    return {name: str(value) for name, value in {**plain, **versions, "commit": commit}.items() if value is not None}


def _counted(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return ", ".join(f"{value} ({count} runs)" for value, count in values.most_common())


def _settings(settings: RunConfig) -> dict[str, Any]:
    """Return every setting of a run, but for what tells runs apart anyway."""
    told = config.flatten(config.write(settings))
    return {key: value for key, value in told if key not in ("seed", "name", *config.STARTED)}


def _as_json(settings: Mapping[str, Any], key: str) -> str | None:
    return json.dumps(settings[key]) if key in settings else None


def _listed(values: Sequence[Any]) -> Any:
    if len(values) < 2:
        return _text(values[0]) if values else None
    return ", ".join(str(_text(value)) for value in values)


def _of(name: str, comparisons: Mapping[str, Comparison]) -> Row:
    """Return the name of a comparison where there are several."""
    return {"of": name} if len(comparisons) > 1 else {}


def _text(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) or value is None else json.dumps(value)
