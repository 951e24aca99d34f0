"""The report as one HTML file: no scripts, nothing fetched, light and dark, readable by ear as well as by eye.

Everything on the page comes from the `Report` and is escaped on its way (see `markup`).
"""

from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from itertools import groupby

from pruner import report_text as text
from pruner.markup import Child, Html, document, element, join, style
from pruner.report import REASONS, Check, Figure, Layer, Removal, Report
from pruner.report_charts import activity_strip, layer_bar, line_chart, model_profile, reasons_bar
from pruner.report_repair import budgets_section, repair_section
from pruner.report_tables import ROWS_IN_PAGE, ROWS_SHOWN, breakable, left_out, names, ranges, section, table

LAYERS_AT_A_GLANCE = 24
"""With more layers than this, a picture of all of them comes first."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_OUTCOME = {
    "pruned": "Pruned",
    "dry run": "Dry run",
    "nothing to remove": "Unchanged",
    "restored": "Restored",
}


def render_report(report: Report) -> str:
    """The whole page."""
    sections = [
        part
        for part in (
            _warnings(report),
            _figures(report),
            _layers(report),
            budgets_section(report),
            _removed(report),
            repair_section(report),
            _verification(report),
            _loading(report),
            _frozen(report),
            _suggestions(report),
            _history(report),
            _provenance(report),
        )
        if part
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{report.model_name}: {report.headline}"),
        style(files("pruner").joinpath("templates/report.css").read_text("utf-8")),
    )
    body = element(
        "body",
        element("a", "Skip to the report", class_="skip", href="#report"),
        _header(report),
        element("main", sections, id="report"),
        element(
            "footer",
            f"Written by NeuronScope {report.environment.versions.get('neuronscope', '')} for run ",
            element("code", report.run),
            ". The JSON of the same name beside this page holds the same data, unabridged.",
        ),
    )
    return document(head, body)


def _header(report: Report) -> Html:
    started = datetime.fromisoformat(report.started)
    return element(
        "header",
        element(
            "p",
            element("span", _badge(report), class_=f"badge {report.outcome.replace(' ', '-')}"),
            element("span", report.model_name, class_="model"),
            element("time", f"{started:%d %B %Y, %H:%M}".lstrip("0"), datetime=report.started),
            class_="eyebrow",
        ),
        element("h1", report.headline.replace("× ", "×\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")),
        element("p", report.summary, class_="lede"),
    )


def _warnings(report: Report) -> Html:
    if not report.warnings:
        return Html()
    notes = element("ul", [element("li", warning) for warning in report.warnings])
    return section("Please note", notes, key="warnings")


def _figures(report: Report) -> Html:
    title = "Before and after" if report.outcome == "pruned" else "The model, as it is"
    cards = element("ul", [_card(figure) for figure in report.figures], class_="cards")
    rows: list[list[Child]] = [[name, text.plain(value)] for name, value in report.custom.items()]
    custom = table("Metrics of your own", ("Metric", "Value"), rows, "metrics") if rows else ""
    return section(title, cards, custom, key="figures")


def _card(figure: Figure) -> Html:
    before, after = _value(figure, figure.before), figure.after
    title = element("h3", figure.name[:1].upper() + figure.name[1:])
    if after is None:
        return element("li", title, element("p", before, class_="big"))
    change, verdict = _change(figure, after)
    top = max(abs(figure.before), abs(after)) or 1
    meter = element(
        "svg",
        element("rect", class_="was", x=0, y=0, width=100 * abs(figure.before) / top, height=4),
        element("rect", class_="now", x=0, y=0, width=100 * abs(after) / top, height=4),
        class_="meter",
        viewBox="0 0 100 4",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    return element(
        "li",
        title,
        element("p", _value(figure, after), class_="big"),
        meter,
        element("p", f"was {before} ", element("span", change, class_=f"change {verdict}"), class_="from"),
    )


def _value(figure: Figure, value: float) -> str:
    if figure.unit == "count":
        return f"{int(value):,}"
    if figure.unit == "bytes":
        return text.bytes_of(value)
    if figure.unit == "milliseconds":
        return text.milliseconds(value)
    if figure.unit == "share":
        return f"{100 * value:.1f} %"
    return text.short(value)


def _change(figure: Figure, after: float) -> tuple[str, str]:
    """How a figure changed, and whether that is better, worse or the same."""
    if figure.unit == "milliseconds":
        change = text.speed(figure.before, after)
        same = change == "as fast as before"
    elif figure.unit == "share":
        points = 100 * (after - figure.before)
        same = abs(points) < 0.05
        change = "unchanged" if same else f"{points:+.1f} points".replace("-", "−")
    elif figure.unit == "number":
        same = text.short(after) == text.short(figure.before)
        change = "unchanged" if same else f"{after - figure.before:+.3g}".replace("-", "−")
    else:
        same = after == figure.before
        share = after / figure.before - 1 if figure.before else 0.0
        change = "unchanged" if same else f"{'−' if share < 0 else '+'}{text.percent(abs(share))}"
    if same:
        return change, "same"
    return change, "better" if (after < figure.before) == (figure.better == "lower") else "worse"


def _layers(report: Report) -> Html:
    if not report.layers:
        return section("Layer by layer", element("p", "The model has no neurons that can be removed.", class_="soft"))
    many = len(report.layers) > LAYERS_AT_A_GLANCE
    sizes = [layer.before for layer in report.layers]
    to_scale = max(sizes) <= 20 * min(sizes)
    glance: list[Html] = []
    shown: Sequence[Layer] = report.layers
    if many:
        glance = [
            element(
                "figure",
                model_profile(report.layers),
                element("figcaption", f"Share removed from each of the {len(report.layers)} layers, first to last."),
            )
        ]
        shown = sorted(report.layers, key=lambda layer: layer.after / layer.before)
    legend = element(
        "p",
        element("span", "", class_="key kept"),
        " kept ",
        element("span", "", class_="key gone"),
        " removed. ",
        "Bars are drawn to the size of the layer. " if to_scale else "Every bar is one whole layer. ",
        "Activity shows the neurons in order: the stronger the colour, the more often they fire; ",
        "the marks below are the removed ones.",
        class_="legend",
    )
    caption = "Neurons of every layer" + (", those that lost most first" if many else ", in the model's order")
    rows = [_layer_row(layer, max(sizes) if to_scale else layer.before) for layer in shown]
    head = ("Layer", "Kept and removed", "Kept", "Removed", "Activity")
    shown_rows = ROWS_SHOWN if many else LAYERS_AT_A_GLANCE
    return section("Layer by layer", glance, legend, table(caption, head, rows, "layers", shown_rows, numeric=(2, 3)))


def _layer_row(layer: Layer, largest: int) -> list[Child]:
    removed = layer.before - layer.after
    about = [] if layer.exact else [element("span", " inexact", class_="kind", title=layer.note)]
    return [
        join([element("code", breakable(layer.name)), " ", element("span", layer.kind, class_="kind"), *about]),
        layer_bar(layer, largest),
        join([f"{layer.after:,}", element("span", f" of {layer.before:,}", class_="soft")]),
        join(
            [f"{removed:,}", element("span", f" {text.percent(removed / layer.before)}", class_="soft")]
            if removed
            else [element("span", "0", class_="soft")]
        ),
        activity_strip(layer),
    ]


def _removed(report: Report) -> Html:
    title = "What would be removed, and why" if report.outcome == "dry run" else "What was removed, and why"
    if not report.removals:
        return Html()
    reasons = list(report.reasons.items())
    legend = element(
        "ul",
        [
            element(
                "li",
                element("span", "", class_=f"key r{place % 5}"),
                element("strong", f"{number:,} {reason}"),
                element("span", f" {REASONS.get(reason, '')}", class_="soft"),
            )
            for place, (reason, number) in enumerate(reasons)
        ],
        class_="reason-list",
    )
    grouped = [
        _group_row(layer, reason, list(removals))
        for (layer, reason), removals in groupby(report.removals, key=lambda removal: (removal.layer, removal.reason))
    ]
    by_layer = table(
        f"By layer and reason; the strategy was “{report.strategy}”",
        ("Layer", "Why", "How many", "Which neurons", "Evidence"),
        grouped,
        "rows",
        numeric=(2,),
    )
    scored = any(removal.score is not None for removal in report.removals)
    each = element(
        "details",
        element("summary", f"Every removed neuron: {len(report.removals):,}"),
        table(
            "Every removed neuron with its evidence",
            ("Layer", "Neuron", "Why", "Evidence", *(["Score"] if scored else [])),
            [_removal_row(removal, scored) for removal in report.removals[:ROWS_IN_PAGE]],
            "neurons",
            ROWS_IN_PAGE,
            numeric=(1, 4),
        ),
        left_out(len(report.removals)),
    )
    return section(title, reasons_bar(reasons), legend, by_layer, each, key="removed")


def _group_row(layer: str, reason: str, removals: Sequence[Removal]) -> list[Child]:
    evidence = next((removal.evidence for removal in removals if removal.evidence), "")
    scores = [removal.score for removal in removals if removal.score is not None]
    if not evidence and scores:
        evidence = f"scores {min(scores):.3g} to {max(scores):.3g}" if len(scores) > 1 else f"score {scores[0]:.3g}"
    elif len(removals) > 1 and evidence:
        evidence = f"such as: {evidence}"
    return [
        element("code", breakable(layer)),
        element("span", reason, class_="whole"),
        f"{len(removals):,}",
        ranges([removal.neuron for removal in removals]),
        evidence,
    ]


def _removal_row(removal: Removal, scored: bool) -> list[Child]:
    row: list[Child] = [
        element("code", breakable(removal.layer)),
        f"{removal.neuron}",
        removal.reason,
        removal.evidence,
    ]
    if scored:
        row.append("" if removal.score is None else f"{removal.score:.4f}")
    return row


def _badge(report: Report) -> str:
    return f"{_OUTCOME[report.outcome]}{' and proven' if report.outcome == 'pruned' and report.proven else ''}"


def _verification(report: Report) -> Html:
    if not report.checks:
        return Html()
    rows = [_check_row(check) for check in report.checks]
    caption = f"{report.passed} of {text.count(report.total, 'check')} passed"
    checks = table(caption, ("Check", "Result", "What was found"), rows, "checks", 99)
    not_checked = element(
        "ul", [element("li", f"Not checked: {reason}.") for reason in report.not_checked], class_="soft"
    )
    measured = element("p", text.difference(report.measured.model_dump())) if report.measured else ""
    return section("Verification", checks, not_checked if report.not_checked else "", measured)


def _check_row(check: Check) -> list[Child]:
    verdict = element("span", "✓ passed" if check.passed else "✗ failed", class_="better" if check.passed else "worse")
    measured = " · ".join(f"{key.replace('_', ' ')} {text.plain(value)}" for key, value in check.measured.items())
    return [
        element("strong", check.name[:1].upper() + check.name[1:]),
        verdict,
        join([check.detail, element("span", f" {measured}", class_="measured") if measured else ""]),
    ]


def _loading(report: Report) -> Html:
    if not report.loading:
        return Html()
    return section(
        "Load the result",
        element("p", "The smaller model is stored as safetensors and JSON; loading it runs no code from the file."),
        element("pre", element("code", report.loading), tabindex="0"),
        key="load",
    )


def _frozen(report: Report) -> Html:
    parts: list[Child] = []
    if report.frozen:
        reasons: dict[str, list[str]] = {}
        sizes: dict[str, int] = {}
        for entry in report.frozen:
            reasons.setdefault(entry.reason, []).append(entry.name)
            sizes[entry.reason] = sizes.get(entry.reason, 0) + entry.size
        rows: list[list[Child]] = [[reason, f"{sizes[reason]:,}", names(where)] for reason, where in reasons.items()]
        head = ("Why", "Positions", "Where")
        parts.append(table("What cannot be removed from this model", head, rows, "reasons", numeric=(1,)))
    if report.operators_without_rule:
        operators = ", ".join(f"{name} ({number}×)" for name, number in report.operators_without_rule.items())
        parts.append(element("p", f"Operators that have no rule, so that what enters them is left alone: {operators}."))
    return section("Left alone", *parts, key="frozen") if parts else Html()


def _suggestions(report: Report) -> Html:
    if not report.suggestions:
        return Html()
    rows: list[list[Child]] = [
        [entry.kind, element("code", breakable(entry.layer)), entry.detail]
        for entry in report.suggestions[:ROWS_IN_PAGE]
    ]
    advice = table("What the tracker also suggests", ("Advice", "Layer", "Because"), rows, "suggestions")
    return section("Not done, but worth a thought", advice, left_out(len(report.suggestions)), key="advice")


def _history(report: Report) -> Html:
    charts = []
    for name in ("loss", "accuracy"):
        pairs = [(epoch.epoch, value) for epoch in report.history if (value := getattr(epoch, name)) is not None]
        if len(pairs) > 1:
            epochs, values = zip(*pairs, strict=True)
            charts.append(element("figure", line_chart(name, epochs, values), element("figcaption", name.capitalize())))
    return section("Training so far", element("div", charts, class_="pair"), key="history") if charts else Html()


def _provenance(report: Report) -> Html:
    there = report.environment
    steps = ", ".join(f"{step} {text.milliseconds(1000 * seconds)}" for step, seconds in report.seconds.items())
    facts = {
        "Run": report.run,
        "Model": report.model,
        "Data": f"{there.batches:,} {'batch' if there.batches == 1 else 'batches'}, of which the first is "
        f"{', '.join(there.batch)}",
        "Time": steps,
        "Machine": f"{there.processor}, {there.platform}",
        "Computed with": f"{there.dtype} on {there.device}, {text.count(there.threads, 'thread')}, seed {there.seed}",
        "Versions": ", ".join(f"{name} {version}" for name, version in there.versions.items()),
    }
    listed = element(
        "dl", [part for name, value in facts.items() for part in (element("dt", name), element("dd", value))]
    )
    files: list[list[Child]] = [
        [name.replace("_", " "), element("code", breakable(path))] for name, path in report.files.items()
    ]
    config: list[list[Child]] = [
        [element("code", f"{section}.{option}"), element("code", str(value))]
        for section, options in there.config.items()
        for option, value in (options.items() if isinstance(options, dict) else [("", options)])
    ]
    return section(
        "How this was made",
        listed,
        table("Files of this run", ("What", "Where"), files, "files", 99) if files else "",
        element(
            "details",
            element("summary", "Configuration"),
            table("Every option of this run", ("Option", "Value"), config, "options", 99),
        )
        if config
        else "",
        key="provenance",
    )
