"""The page of a report in a real browser: nothing is asked of a network, nothing fails, and it can be read."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ..conftest import Command
from ..verbs.test_report import arm, fabricate

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parents[2] / "docs/results"
SIZES = {"desktop": (1200, 900, False), "phone": (390, 844, True)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(found):
        pytest.skip("there is no chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    quiet = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
    for word in (
        *quiet,
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('user')}",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(found[1]))
    yield driver
    driver.quit()


@pytest.fixture(params=["made up", *sorted(str(page.relative_to(RESULTS)) for page in RESULTS.rglob("report.html"))])
def report(request: pytest.FixtureRequest, normlab: Command, tmp_path: Path) -> Path:
    """A page: of runs that are made up, and each one that is published."""
    if request.param != "made up":
        return RESULTS / request.param
    for seed in range(5):
        fabricate(tmp_path / f"study/none{seed}", arm("none", seed), [90.0, 40.0, 20.0 + seed])
        fabricate(tmp_path / f"study/spectral{seed}", arm("spectral", seed), [90.0, 30.0, 5.0 + seed])
    fabricate(tmp_path / "study/layer0", arm("layer"), [90.0, 30.0, 8.0])
    assert normlab("report", str(tmp_path / "study"), "--out", str(tmp_path / "out")).exit_code == 0
    return tmp_path / "out/report.html"


@pytest.mark.parametrize("size", SIZES)
def test_it_fits_the_screen_sorts_and_asks_nothing_of_a_network(browser: Any, report: Path, size: str) -> None:
    width, height, mobile = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("performance")
    browser.get(report.as_uri())

    assert browser.find_element("css selector", ".answer").text.endswith(".")
    # No part of it stands out to the side: what is wide scrolls by itself.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    images = browser.execute_script("return [...document.images].map(image => [image.complete, image.naturalWidth])")
    assert images
    assert all(complete and natural > 0 for complete, natural in images)

    body = "document.querySelector('#part-0-quality').parentElement.querySelector('tbody')"
    column = f"return [...{body}.rows].map(row => row.cells[1].dataset.key).filter(key => key !== '').map(Number)"
    found = browser.execute_script(column)
    button = browser.find_element("css selector", "#part-0-quality ~ .scroll th:nth-child(2) button")
    for expected in (sorted(found), sorted(found, reverse=True)):
        button.click()
        assert browser.execute_script(column) == expected

    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_on_paper_nothing_is_cut_off(browser: Any, report: Path) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 718, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        browser.get(report.as_uri())
        right = "it => it.getBoundingClientRect().right > innerWidth + 1"
        cut = f"return [...document.querySelectorAll('table, img')].filter({right}).length"
        assert browser.execute_script(cut) == 0  # 718 px is the width of A4 within the margins
        assert browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("report", ["made up"], indirect=True)
def test_figures_are_dark_on_a_dark_page_and_light_on_paper(browser: Any, report: Path) -> None:
    def paper(scheme: str, media: str = "screen") -> int:
        """Return the grey level of the corner of the first figure."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        image = browser.find_element("css selector", "figure img").screenshot_as_png
        return int(np.asarray(Image.open(io.BytesIO(image)).convert("L"))[3, 3])

    try:
        browser.get(report.as_uri())
        assert (paper("light"), paper("dark"), paper("light", "print")) == (254, pytest.approx(17, abs=2), 254)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
