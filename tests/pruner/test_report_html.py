import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.pruner.sample_results import sample_results

from pruner.report_building import build_report
from pruner.report_html import render_report
from pruner.report_tables import ROWS_IN_PAGE
from pruner.results import WorkflowResults

HOSTILE = '</title></style><script>alert(1)</script><img src=x onerror="alert(2)">\'"&'
ENCODER = [(f"encoder.layer.{place // 2}.{'mlp' if place % 2 else 'attention'}", 12 + place) for place in range(126)]


class Page(HTMLParser):
    """A page's elements, whether every one is closed, and its text."""

    void = frozenset({"meta", "link", "br", "hr", "img", "input", "wbr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(results: WorkflowResults) -> Page:
    return Page(render_report(build_report(results)))


ALL = {
    "pruned": sample_results(),
    "dry run": sample_results(outcome="dry run"),
    "restored": sample_results(outcome="restored"),
    "nothing": sample_results(share=0, outcome="nothing to remove"),
    "one layer": sample_results([("fc1", 200)], history=1),
    "126 layers": sample_results(ENCODER),
    "hostile": sample_results([(HOSTILE, 20), (f"{HOSTILE}.b", 30)], model_name=HOSTILE),
}


@pytest.mark.parametrize("name", list(ALL))
def test_the_page_is_well_formed_and_fetches_and_runs_nothing(name: str) -> None:
    seen = page(ALL[name])

    assert seen.all("script") == seen.all("img") == seen.all("iframe") == []
    for _, attributes in seen.elements:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("href", "src", "xlink:href"):
            target = attributes.get(key)
            assert target is None or target.startswith(("#", "data:"))
    assert "url(" not in seen.text
    assert "@import" not in seen.text


@pytest.mark.parametrize("name", list(ALL))
def test_the_page_can_be_read_by_ear(name: str) -> None:
    seen = page(ALL[name])

    assert seen.all("html") == [{"lang": "en"}]
    assert [len(seen.all(landmark)) for landmark in ("header", "main", "footer", "h1", "head")] == [1] * 5
    assert len(seen.all("caption")) == len(seen.all("table"))
    assert all(attributes.get("scope") == "col" for attributes in seen.all("th"))
    named = {attributes["id"] for _, attributes in seen.elements if "id" in attributes}
    assert len(named) == sum("id" in attributes for _, attributes in seen.elements)
    assert {section["aria-labelledby"] for section in seen.all("section")} <= named
    for picture in seen.all("svg"):
        assert picture.get("aria-hidden") == "true" or (picture["role"] == "img" and picture["aria-label"])


def test_hostile_names_are_shown_as_they_are() -> None:
    seen = page(ALL["hostile"])

    assert "<script>alert(1)</script>" in seen.text
    assert f"taken out of 2 of 2 layers of {HOSTILE}." in seen.text


def test_what_the_page_says() -> None:
    results = sample_results()
    report, seen = build_report(results), page(results)

    assert report.headline in seen.text.replace("\N{NO-BREAK SPACE}", " ")
    for layer in report.layers:
        assert f"{layer.after:,} of {layer.before:,}" in seen.text
    for check in report.checks:
        assert check.name.capitalize() in seen.text
    assert "largest relative error 3.1e-07 · tolerance 0.0001" in seen.text
    assert report.loading in seen.text
    for words in (
        "model output",
        "saturated",
        "float32[128, 1, 8, 8]",
        "seed 0",
        "AMD EPYC",
        "target_sparsity",
        "−0.2 points",
    ):
        assert words in seen.text
    assert seen.text.count("✓ passed") == 6


def test_metrics_of_your_own_and_what_was_not_checked_are_on_the_page() -> None:
    results = sample_results()
    results["metrics"]["custom"] = {"calibration error": 0.0312, "notes": {"a": 1}}
    results["verification_results"]["not_checked"] = ["sliced equals masked: layer 'stem' is not exact"]
    seen = page(results)

    assert "calibration error0.031" in seen.text
    assert "notesa 1" in seen.text
    assert "Not checked: sliced equals masked: layer 'stem' is not exact." in seen.text


def test_what_was_measured_and_not_proven_is_on_the_page() -> None:
    results = sample_results()
    assert "Pruned and proven" in page(results).text
    assert "proven: 6/6 checks" in page(results).text
    results["verification_results"]["measured"] = {
        "layers": {"fc1": "its neurons are normalised together"},
        "batches": 4,
        "relative_error": 0.12,
        "top1_agreement": 0.97,
        "exact_alone": {"relative_error": 0.04, "top1_agreement": None},
        "accuracy_before": 0.978,
        "accuracy_after": 0.961,
    }
    seen = page(results)
    assert "6/6 checks passed, 1 layer not exact" in seen.text
    assert "proven: 6/6" not in seen.text
    assert "Pruned and proven" not in seen.text
    assert "silenced" not in seen.text
    assert (
        seen.text.count(
            "Not exact: fc1. Measured, not proven: the answers are 12 % off those before (4.0 % by the exact layers "
            "alone); 97 % keep their first choice; accuracy 97.8 → 96.1 %."
        )
        == 2
    )  # in the summary, and beside the checks


def test_a_failed_check_is_shown_as_failed() -> None:
    seen = page(sample_results(outcome="restored"))

    assert seen.text.count("✗ failed") == 1
    assert "48 neurons were taken out of DigitsCNN, a check failed, and every one was put back." in seen.text
    assert "Load the result" not in seen.text


def test_many_layers_are_folded_behind_a_picture_of_all() -> None:
    seen = page(sample_results(ENCODER))

    assert "114 more layers" in seen.text
    assert any(picture.get("class") == "profile" for picture in seen.all("svg"))
    assert not any(picture.get("class") == "profile" for picture in page(sample_results()).all("svg"))


def test_a_huge_run_stays_a_page_that_opens() -> None:
    results = sample_results([(f"layer.{place}", 3072) for place in range(200)])
    html = render_report(build_report(results))

    assert len(html) < 2_000_000
    assert re.search(r"[\d,]+ more are in the JSON", html)
    assert html.count("<tr>") < 4 * ROWS_IN_PAGE


def test_contrast_of_text_in_both_themes() -> None:
    """WCAG AA: 4.5 to 1 for every colour that text has on every background that it may lie on."""
    css = render_report(build_report(sample_results()))
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    )

    def luminance(colour: str) -> float:
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [(text, back) for text in ("ink", "soft") for back in ("paper", "card", "code", "same-back")]
    pairs += [("good", "good-back"), ("bad", "bad-back"), ("good", "card"), ("bad", "card"), ("accent", "paper")]
    pairs += [("ink", "bad-back")]
    for theme in (light, dark):
        for text, back in pairs:
            first, second = sorted((luminance(theme[text]), luminance(theme[back])), reverse=True)
            assert (first + 0.05) / (second + 0.05) >= 4.5, (text, back)


@pytest.mark.browser
def test_the_page_opens_in_a_browser_without_a_request_or_an_error(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(render_report(build_report(ALL["hostile"])), "utf-8")
    bad = tmp_path / "bad.html"
    bad.write_text("<h1>Hello</h1><img src='http://example.invalid/x.png'><script>nowhere()</script>", "utf-8")

    dom, console, requests = _browse(report, tmp_path)
    assert "neurons were taken out" in dom
    assert (console, requests) == ([], [])
    # The same look at a page that does both: the two empty lists above mean something.
    dom, console, requests = _browse(bad, tmp_path)
    assert "Hello" in dom
    assert any("nowhere" in line for line in console)
    assert requests == ["http://example.invalid/x.png"]


def _browse(page: Path, directory: Path) -> tuple[str, list[str], list[str]]:
    """The DOM of a page after loading, its console lines, and the addresses it asked the network for."""
    log = directory / f"{page.stem}-net.json"
    switches = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --dump-dom"
    )
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    profile = f"--user-data-dir={directory / 'profile'}"
    command = ["chromium", *switches.split(), offline, profile, f"--log-net-log={log}"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    recorded = json.loads(log.read_text("utf-8"))
    started = [event["params"] for event in recorded["events"] if "initiator" in event.get("params", {})]
    # What the browser asks for on its own account has no origin.
    requests = {each["url"] for each in started if each["initiator"] != "not an origin"}
    return done.stdout, console, sorted(requests - {page.as_uri()})
