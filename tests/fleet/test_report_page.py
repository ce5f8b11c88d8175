"""The page about all services, as a person sees it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from overviews import HOSTILE, NUMBERS, overview, service
from selenium.webdriver.common.keys import Keys

from support.browser import Browser, browsing, until
from trackbed.model import Drift, Findings, Forecast, Inventory, Loss, Policy, Verdict, Violation
from trackbed.report import Overview, render, write

pytestmark = pytest.mark.long


def fleet() -> Overview:
    """Services of every kind, hostile ones among them."""
    items = [
        service(
            f"service-{number}",
            NUMBERS[number % 4],
            backup=["railway", "litestream", "none"][number % 3],
            workers=[1, 2, 10][number % 3],
            project_name=f"Service {number}",
        )
        for number in range(24)
    ]
    items += [
        replace(service(text), answers={"backup": text[:20], "note": text}) for text in HOSTILE[:3]
    ]
    items.append(Inventory(name="lost", where="/srv/lost", problem="<b>not</b> a git repository"))
    items.append(
        replace(service("odd"), version=None, age_days=None, behind=None, unknown="<i>why")
    )
    verdicts: list[Verdict] = ["clean", "conflicts", "lost", "current"]
    names = [{"name": item.name, "where": item.where, "problem": item.problem} for item in items]
    drift = [
        Drift(**one, changed=["app/<b>.py"] * (number % 2), missing=["b.py"] * (number % 3 == 0))
        for number, one in enumerate(names)
    ]
    broken = Violation(rule="backup != none", found="backup is none")
    policy = [
        Policy(**one, violations=[broken] * (item.answers.get("backup") == "none"))
        for item, one in zip(items, names, strict=True)
    ]
    forecast = [
        Forecast(
            **one,
            verdict="unknown" if item.problem else verdicts[number % 4],
            lost=[Loss(path="README.md", tokens=["<b>", "words"])] * (number % 4 == 2),
        )
        for number, (item, one) in enumerate(zip(items, names, strict=True))
    ]
    return overview(
        *items,
        drift=Findings("drift", drift, False, "drift"),
        policy=Findings("policy", policy, False, "policy"),
        forecast=Findings("forecast", forecast, False, "NO-GO", "0.11.0"),
    )


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.fixture
def page(chromium: Browser, tmp_path: Path) -> Browser:
    write(tmp_path / "report.html", render(fleet().document()))
    chromium.open((tmp_path / "report.html").as_uri())
    return chromium


def ask(browser: Browser, script: str, *arguments: object) -> Any:
    return browser.driver.execute_script(script, *arguments)


def column(browser: Browser, at: int = 0) -> list[str]:
    """The cells of a column, of the rows that are not hidden."""
    script = """
      const rows = [...document.querySelectorAll("tbody tr")];
      const shown = rows.filter((row) => row.checkVisibility());
      return shown.map((row) => row.cells[arguments[0]].textContent);
    """
    cells: list[str] = ask(browser, script, at)
    return cells


def chart(browser: Browser, name: str) -> dict[str, int]:
    """What is written beside its bars."""
    script = "return document.getElementById(arguments[0]).querySelector('svg').ariaLabel"
    numbers = ask(browser, script, f"chart-{name}").split(". ", 1)[1].removesuffix(".")
    pairs = [pair.rsplit(": ", 1) for pair in numbers.split(", ")]
    return {label: int(number) for label, number in pairs}


def sizes(browser: Browser, name: str, attribute: str) -> list[float]:
    script = """
      const bars = document.getElementById(arguments[0]).querySelectorAll("rect[data-key]");
      return [...bars].map((bar) => bar[arguments[1]].baseVal.value);
    """
    found: list[float] = ask(browser, script, f"chart-{name}", attribute)
    return found


def press(browser: Browser, facet: str, key: str, tag: str = "button") -> None:
    script = """
      const found = [...document.querySelectorAll(`${arguments[2]}[data-facet]`)].find(
        ({ dataset }) => dataset.facet === arguments[0] && dataset.key === arguments[1]);
      found.scrollIntoView({ block: "center" });
      return found;
    """
    ask(browser, script, facet, key, tag).click()


def sort(browser: Browser, title: str) -> str:
    """Click on a header. Returns how its column is sorted then."""
    script = """
      const found = [...document.querySelectorAll("thead button")];
      return found.find((button) => button.textContent === arguments[0]);
    """
    button = ask(browser, script, title)
    ask(browser, "arguments[0].scrollIntoView({ block: 'center', inline: 'center' })", button)
    button.click()
    order: str = ask(browser, "return arguments[0].closest('th').ariaSort", button)
    return order


def test_charts_and_tiles_have_the_numbers(page: Browser) -> None:
    items = fleet().inventory.items
    found = fleet()
    assert found.drift
    assert found.policy
    assert found.forecast

    tiles = ask(page, "return [...document.querySelectorAll('#tiles b')].map((b) => b.textContent)")
    assert tiles == ["29", "9", "18", "1", "1"]
    by_version = Counter(item.version or "not known" for item in items)
    assert chart(page, "version") == by_version
    assert list(chart(page, "version")) == ["0.11.0", "0.10.0", "0.9.0", "0.8.0", "not known"]
    behind = Counter(str(item.behind) for item in items if item.behind is not None)
    assert chart(page, "behind") == {**behind, "not known": 2}
    assert sum(chart(page, "age").values()) == len(items)
    assert chart(page, "age")["100\N{EN DASH}119"] == 6
    backups = Counter(str(i.answers["backup"]) for i in items if "backup" in i.answers)
    answered = chart(page, "answer-backup")
    assert {answered[name] for name in ("railway", "litestream", "none")} == {backups["none"]}
    assert chart(page, "answer-workers") == {"1": 8, "2": 8, "10": 8, "not answered": 4}
    assert page.driver.find_elements("css selector", "#chart-answer-project_name") == []
    assert chart(page, "drift") == {
        "app/<b>.py": sum(bool(item.changed) for item in found.drift.items),
        "b.py": sum(bool(item.missing) for item in found.drift.items),
    }
    assert chart(page, "policy") == {"backup != none": 8}
    assert chart(page, "forecast") == {
        "nothing to do": 6, "clean": 8, "conflicts": 7, "edits lost": 7, "unknown": 1,
    }  # fmt: skip
    widths = sizes(page, "version", "width")
    assert widths == pytest.approx([100 * n / 9 for n in chart(page, "version").values()], rel=1e-3)
    assert sum(sizes(page, "answer-workers", "width")) == pytest.approx(100, rel=1e-3)


def test_columns_are_sorted_as_what_they_are(page: Browser) -> None:
    assert sort(page, "Version") == "ascending"
    order = list(dict.fromkeys(column(page, 2)))
    assert order == [*NUMBERS, ""]
    assert sort(page, "Version") == "descending"
    assert list(dict.fromkeys(column(page, 2))) == [*reversed(NUMBERS), ""]

    titles = ask(
        page, "return [...document.querySelectorAll('thead th')].map((e) => e.textContent)"
    )
    assert sort(page, "workers") == "ascending"
    assert list(dict.fromkeys(column(page, titles.index("workers")))) == ["1", "2", "10", ""]
    assert sort(page, "Service") == "ascending"
    names = [name for name in column(page) if name.startswith("service-")]
    assert names == [f"service-{number}" for number in range(24)]
    assert (
        ask(page, "return document.querySelectorAll('thead th:not([aria-sort=none])').length") == 1
    )


def test_filters(page: Browser) -> None:
    def shown() -> str:
        count: str = page.find("#count").text
        return count

    assert shown() == "29 of 29"
    page.find("#filter").send_keys("GIT repos")
    assert (column(page), shown()) == (["lost"], "1 of 29")
    page.find("#filter").send_keys("itory nothing like it")
    assert (column(page), page.says("No service is like that.")) == ([], True)
    page.press("Clear filters")
    assert shown() == "29 of 29"

    press(page, "version", "0.9.0", tag="rect")
    assert set(column(page, 2)) == {"0.9.0"}
    assert page.find("#version").get_attribute("value") == "=0.9.0"
    press(page, "policy", "backup != none")
    assert shown() == "2 of 29"
    press(page, "policy", "backup != none")
    press(page, "version", "0.9.0")
    assert shown() == "29 of 29"

    press(page, "state", "unread")
    assert column(page) == ["lost"]
    page.find("#state").send_keys("All")
    page.find("#version").send_keys("not known")
    assert sorted(column(page)) == ["lost", "odd"]
    page.press("Clear filters")

    press(page, "answer-backup", "=none", tag="rect")
    assert shown() == "8 of 29"
    chip = page.labelled("backup: none \N{MULTIPLICATION SIGN}")
    chip.click()
    assert shown() == "29 of 29"


def test_the_keyboard_reaches_it_all(page: Browser) -> None:
    stops = []
    for _ in range(200):
        page.type(Keys.TAB)
        label = ask(
            page, "const a = document.activeElement; return a.ariaLabel || a.id || a.innerText"
        )
        stops.append(label)
        if "Where" in label:
            break
    for stop in ("State, behind: 18 services", "backup, none: 8 services", "filter", "Version"):
        assert stop in stops
    page.driver.switch_to.active_element.send_keys(Keys.SPACE)
    assert ask(page, "return document.activeElement.closest('th').ariaSort") == "ascending"


def test_hostile_texts_are_texts(page: Browser) -> None:
    assert set(HOSTILE[:3]) <= set(column(page))
    assert "could not be read<b>not</b> a git repository" in column(page, 1)
    assert ask(page, "return document.querySelectorAll('img, i, main script, td b').length") == 0
    assert ask(page, "return performance.getEntriesByType('resource').length") == 0
    press(page, "answer-backup", f"={HOSTILE[0][:20]}")
    assert column(page) == [HOSTILE[0]]
    # nor is it allowed to make one
    script = "try { document.body.innerHTML = '<b>'; return ''; } catch (e) { return e.name; }"
    assert ask(page, script) == "TypeError"
    assert page.driver.get_log("browser")


CONTRASTS = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r / 255, g / 255, b / 255].map(
    (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ground = (element) => {
  for (; element; element = element.parentElement) {
    const colour = parse(getComputedStyle(element).backgroundColor);
    if (colour[3] !== 0) return colour;
  }
};
const own = (element) =>
  [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) &&
  element.checkVisibility() && !element.closest("script, title");
return [...document.querySelectorAll("body *")]
  .filter(own)
  .map((element) => {
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 90)];
  });
"""


def prefer(browser: Browser, scheme: str) -> str:
    """Returns the page's background."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    background: str = ask(browser, "return getComputedStyle(document.body).backgroundColor")
    return background


def test_dark_and_light_can_be_read(page: Browser) -> None:
    backgrounds = set()
    for scheme in ("light", "dark"):
        backgrounds.add(prefer(page, scheme))
        press(page, "version", "0.9.0")
        contrasts = ask(page, CONTRASTS)
        assert len(contrasts) > 150
        assert [found for found in contrasts if found[0] < 4.5] == []
        press(page, "version", "0.9.0")
    assert len(backgrounds) == 2


def test_a_phone_scrolls_only_the_table_sideways(page: Browser) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        script = """
          const wide = (element) => element.scrollWidth > element.clientWidth;
          const scroll = document.getElementById("scroll");
          return [document.scrollingElement, document.body, scroll].map(wide);
        """
        assert ask(page, script) == [False, False, True]
        press(page, "version", "0.10.0")
        assert ask(page, script)[:2] == [False, False]
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_way_to_the_table_once_it_is_filtered(page: Browser) -> None:
    press(page, "behind", "1")
    page.labelled("Show 6 of 29 services").click()
    until(lambda: not page.find("#jump").is_displayed())
    assert set(column(page, 4)) == {"1"}


def test_a_thousand_services(chromium: Browser, tmp_path: Path) -> None:
    items = [service(f"service-{n}", NUMBERS[n % 4], workers=n % 5) for n in range(1000)]
    write(tmp_path / "report.html", render(overview(*items).document()))
    chromium.open((tmp_path / "report.html").as_uri())
    rows = ask(chromium, "return window.rows0 = [...document.querySelectorAll('tbody tr')]")
    assert len(rows) == 1000
    sort(chromium, "Version")
    press(chromium, "version", "0.9.0")
    assert chromium.find("#count").text == "250 of 1000"
    same = "return rows0.every((row) => row.isConnected) && rows0.length"
    assert ask(chromium, same) == 1000
