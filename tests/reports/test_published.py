"""The studies in docs/results: the command that a page names gives that page again from the runs beside it."""

import html
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Command

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/results").rglob("report.html"))


def told(page: Path) -> str:
    """Return what a page says: not its pictures, which another matplotlib draws otherwise, nor the command."""
    text = re.sub(r'(src|srcset)="data:[^"]*"', "picture", page.read_text())
    return re.sub(r'data-key="[^"]*"|<pre>.*</pre>', "", text)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}/{number}")
    else:
        yield path, value


def rounded(value: Any) -> Any:
    """Another processor may add numbers up in another order."""
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value


def test_there_are_pages() -> None:
    assert ROOT / "docs/results/mnist_discriminator/report.html" in PAGES


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_its_command_gives_it_again(
    page: Path, normlab: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"<pre>normlab (report .*)</pre>", page.read_text())
    assert found
    words = shlex.split(html.unescape(found[1]))
    out = words.index("--out") + 1
    assert ROOT / words[out] == page.parent

    monkeypatch.chdir(ROOT)
    assert normlab(*words[:out], str(tmp_path), *words[out + 1 :]).exit_code == 0

    assert told(tmp_path / "report.html") == told(page)
    again, kept = (json.loads((folder / "report.json").read_text()) for folder in (tmp_path, page.parent))
    assert dict(leaves(again)) == {path: rounded(value) for path, value in leaves(kept)}
    files = [
        sorted(str(file.relative_to(folder)) for part in ("tables", "figures") for file in (folder / part).rglob("*"))
        for folder in (tmp_path, page.parent)
    ]
    assert files[0] == files[1]
