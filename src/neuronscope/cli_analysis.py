"""The commands that look at neurons, and the server: `weights`, `candidates`, `impact`, …, `serve`.

Each prints a table for people, or with `--json` one JSON document for programs; progress goes to the error stream.
"""

from __future__ import annotations

import json as json_module
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from neuronscope.impact import PruningImpactAnalyzer

_NAMES = "A directory, stdlib-gpt, digits-vit, module:callable, timm:NAME, torchvision:NAME, or a transformers name."

Model = Annotated[str, typer.Argument(help=_NAMES, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
Texts = Annotated[
    list[str] | None,
    typer.Option("--text", help="An input; give several. Without, samples of real data.", show_default=False),
]
Ablation = Annotated[str, typer.Option(help="What stands in for neurons that are gone: zero, mean or repaired.")]


def weights(
    model: Model,
    json: Json = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the distributions into this PNG.", dir_okay=False, show_default=False)
    ] = None,
) -> None:
    """Show how large the weights are, how many are zero, and in which patterns."""
    from dataclasses import asdict

    from neuronscope.weight_plots import plot_weights

    analyzer = _analyzer(model)
    found = _weights(analyzer)
    if plot is not None:
        plot_weights(found, plot)
    analysis = found.get_sparsity_analysis()
    patterns = {name: asdict(one) for name, one in found.get_sparsity_patterns().items()}
    if json:
        _print({**analysis, "patterns": patterns})
        return
    table = _table("module", "parameters", "zero", "mean |w|", "largest", "Gini", "rank", "2:4")
    for entry in analysis["layer_stats"]:
        looks = patterns.get(entry["layer_name"], {})
        table.add_row(
            Text(entry["layer_name"]),
            f"{entry['total_parameters']:,}",
            f"{entry['sparsity']:.1%}",
            f"{entry['mean_magnitude']:.4f}",
            f"{entry['max_magnitude']:.3f}",
            *(_short(looks.get(key)) for key in ("gini", "effective_rank", "two_of_four")),
        )
    Console().print(table)
    bands = analysis["neurons"]
    typer.echo(
        f"{analysis['total_parameters']:,} parameters, {analysis['overall_sparsity']:.2%} of them zero "
        f"({analysis['sparsity_band']} sparsity). Of {bands['total']:,} neurons the weights are very low in "
        f"{bands['very low']:,}, low in {bands['low']:,}, normal in {bands['normal']:,}."
    )
    if plot is not None:
        typer.echo(f"The picture: {plot}")


def candidates(
    model: Model,
    threshold: Annotated[float, typer.Option(help="Per cent of each layer to flag.")] = 10.0,
    limit: Annotated[int, typer.Option(help="Show so many, the safest first.", min=1)] = 20,
    json: Json = False,
) -> None:
    """List the neurons with the lowest weights of each layer."""
    from dataclasses import asdict

    found = _weights(_analyzer(model)).identify_pruning_candidates(threshold)
    flagged = [one for one in found if one.is_pruning_candidate]
    if json:
        _print({"candidates": [asdict(one) for one in found], "flagged": len(flagged), "threshold": threshold})
        return
    table = _table("layer", "neuron", "mean |w|", "rank", "score", "weights", "read by")
    for one in sorted(flagged, key=lambda one: -one.pruning_score)[:limit]:
        table.add_row(
            str(one.layer_index),
            str(one.neuron_index),
            f"{one.weight_magnitude:.4f}",
            str(one.weight_rank),
            f"{one.pruning_score:.3f}",
            one.band,
            f"{one.consumer_norm:.3f}",
        )
    Console().print(table)
    typer.echo(f"{len(flagged):,} of {len(found):,} neurons are flagged.")


def impact(
    model: Model,
    neurons: Annotated[str, typer.Argument(help="Such as 0:3,0:10-20,5:7 (layer:neuron).", show_default=False)],
    text: Texts = None,
    ablation: Ablation = "zero",
    continuations: Annotated[int, typer.Option(help="Also go on with the texts by so many tokens.", min=0)] = 0,
    json: Json = False,
) -> None:
    """Try the model without some neurons; it is not changed."""
    from neuronscope.movement import verdict

    analyzer = _analyzer(model)
    chosen, inputs = _pairs(neurons), _inputs(analyzer, text)
    found = analyzer.simulate(chosen, inputs, ablation=ablation)  # type: ignore[arg-type]  # checked there
    texts = [one for one in inputs if isinstance(one, str)][:4]
    said = analyzer.continuations(chosen, texts, tokens=continuations) if continuations and texts else []
    if json:
        _print({**found.to_json(), "neurons": len(set(chosen)), "continuations": said})
        return
    metrics = found.metrics
    table = _table("measure", "value")
    table.add_row("impact score", f"{found.impact_score:.4f} ({verdict(found.impact_score)})")
    for name, value in (
        ("KL divergence, nats", metrics.kl),
        ("change of the loss, nats", metrics.loss_change),
        ("first choices that stay", metrics.top1_agreement),
        ("relative L2 change of the answers", metrics.relative_l2),
        ("mean change of the next layer", found.mean_change),
        ("largest change of the next layer", found.max_change),
    ):
        table.add_row(name, "" if value is None else f"{value:.4g}")
    table.add_row("neurons affected there", str(len(found.affected_neurons)))
    Console().print(table)
    for one in said:
        typer.echo(f"\n{one['text'][-60:]!r}\n  with:    {one['before']!r}\n  without: {one['after']!r}")


def importance(
    model: Model,
    layer: Annotated[
        int | None, typer.Option(help="One layer, all of its neurons; else a summary of all.", show_default=False)
    ] = None,
    text: Texts = None,
    method: Annotated[str, typer.Option(help="second-order, first-order or exact.")] = "second-order",
    limit: Annotated[int, typer.Option(help="Show so many of a layer, the most important first.", min=1)] = 20,
    json: Json = False,
) -> None:
    """See which neurons a model cannot do without."""
    from dataclasses import asdict

    analyzer = _analyzer(model)
    inputs = _inputs(analyzer, text)
    if layer is None:
        found = analyzer.analyze_model_importance(inputs, method=method)
    else:
        found = [analyzer.analyze_neuron_importance(inputs, layer, method=method)]
    entries = [entry for one in found for entry in one]
    if json:
        _print(
            {
                "importance_scores": [asdict(entry) for entry in entries],
                "method": found[0].method,
                "rank_correlation": [_number(one.rank_correlation) for one in found],
            }
        )
        return
    if layer is None:
        table = _table("layer", "neurons", "critical", "median impact", "largest", "rank correlation with exact")
        for number, one in enumerate(found):
            scores = sorted(entry.impact_score for entry in one)
            row = (len(one), sum(entry.is_critical for entry in one), scores[len(scores) // 2], scores[-1])
            table.add_row(
                str(number), str(row[0]), str(row[1]), f"{row[2]:.4f}", f"{row[3]:.4f}", f"{one.rank_correlation:.2f}"
            )
    else:
        table = _table("neuron", "impact", "mean |activation|", "variance", "")
        for entry in sorted(entries, key=lambda entry: -entry.impact_score)[:limit]:
            table.add_row(
                str(entry.neuron_index),
                f"{entry.impact_score:.4f}",
                f"{entry.activation_magnitude:.4g}",
                f"{entry.activation_variance:.4g}",
                "critical" if entry.is_critical else "",
            )
    Console().print(table)
    typer.echo(f"Method: {found[0].method}.")


def batch(
    model: Model,
    neurons: Annotated[str, typer.Argument(help="Such as 0:3,0:10-20,5:7 (layer:neuron).", show_default=False)],
    text: Texts = None,
    batch_size: Annotated[int, typer.Option(help="So many candidates and inputs at a time.", min=1)] = 10,
    approximate: Annotated[bool, typer.Option("--approximate", help="Only as exactly as the verdicts need.")] = False,
    json: Json = False,
) -> None:
    """Try many neurons, each alone and all together."""
    from neuronscope.movement import verdict

    analyzer = _analyzer(model)
    chosen = [{"layer_index": layer, "neuron_index": neuron} for layer, neuron in _pairs(neurons)]
    found = analyzer.batch_pruning_analysis(_inputs(analyzer, text), chosen, batch_size, approximate=approximate)
    if json:
        _print(found)
        return
    table = _table("layer", "neuron", "impact", "")
    for one in found["individual_impacts"]:
        score = one["impact_score"]
        table.add_row(str(one["layer_index"]), str(one["neuron_index"]), f"{score:.4f}", verdict(score))
    Console().print(table)
    together, advice = found["cumulative_impact"], found["recommendations"]
    typer.echo(
        f"All together: {together['impact_score']:.4f}. Alone {advice['safe_to_prune']} are safe, "
        f"{advice['risky_to_prune']} risky; {advice['suggested_batch_size']} can go at once."
    )


def compare(
    model: Model,
    others: Annotated[list[str], typer.Argument(help="Models to hold against it.", show_default=False)],
    text: Texts = None,
    json: Json = False,
) -> None:
    """Hold models against each other: loss, size, latency, agreement, and which neurons are the same."""
    from neuronscope.comparison import compare_models
    from neuronscope.inputs import batches_of

    analyzers = {name: _analyzer(name) for name in [model, *others]}
    readers = {id(one.model): one.tokenizer for one in analyzers.values()}
    inputs = _inputs(analyzers[model], text)
    found = compare_models(
        {name: one.model for name, one in analyzers.items()},
        lambda one: batches_of(one, readers[id(one)], inputs),
    )
    if json:
        _print(found)
        return
    table = _table("model", "parameters", "ms", "loss", "impact", "same choice", "same neurons")
    for name, entry in found["models"].items():
        metrics, layers = entry["metrics"] or {}, found["layers"].get(name, [])
        known = [one for one in layers if one["same"] is not None]
        table.add_row(
            Text(name),
            f"{entry['parameters']:,}",
            f"{entry['latency_ms']:.1f}",
            "" if entry["loss"] is None else f"{entry['loss']:.4f}",
            f"{metrics['score']:.4f}" if metrics else "",
            f"{metrics['top1_agreement']:.1%}" if metrics.get("top1_agreement") is not None else "",
            f"{sum(one['same'] for one in known)} of {sum(one['after'] for one in known)}" if known else "",
        )
    Console().print(table)


def export_table(model: str, out: Path, kind: str) -> Path:
    """Write the neurons of a model: their weights, or (`impact`) what is estimated that their absence does."""
    from dataclasses import asdict

    from neuronscope.tables import write_table
    from tracker.errors import ConfigError

    if kind not in ("weight", "impact"):
        raise ConfigError(f"--type '{kind}' is unknown.", hint="Write weight or impact.")
    analyzer = _analyzer(model)
    about = {"type": kind, "model": model}
    if kind == "weight":
        found = _weights(analyzer)
        rows = [asdict(one) for one in found.identify_pruning_candidates()]
        return write_table(out, rows, {**about, **found.get_sparsity_analysis()})
    layers = analyzer.analyze_model_importance(_inputs(analyzer, None))
    return write_table(out, [asdict(entry) for layer in layers for entry in layer], about)


def serve(
    model: Annotated[str, typer.Argument(help=_NAMES)] = "stdlib-gpt",
    port: Annotated[int, typer.Option(help="Where to listen; 0 takes any port that is free.", min=0, max=65535)] = 8765,
    host: Annotated[str, typer.Option(help="Anything but 127.0.0.1 needs --token.")] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option(help="What clients must send.", envvar="NEURONSCOPE_TOKEN", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; by default the best.", show_default=False)] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            help="What engine.save_neuron_history wrote, or a folder of it, to look back on.", show_default=False
        ),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page.")] = False,
    out: Annotated[Path, typer.Option(help="Where jobs, exports and models made here are kept.")] = Path(
        "outputs/neuronscope"
    ),
) -> None:
    """Open the page, and answer over HTTP; works offline with the model that comes with the package."""
    from tracker.errors import ConfigError
    from tracker.extras import require

    if history is not None and not history.exists():
        raise ConfigError(f"--history '{history}' is not there.", hint="Name a file or a folder of training histories.")
    uvicorn = require("uvicorn", "serve")
    require("fastapi", "serve")
    from neuronscope.server import Settings, create_app

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            hint = "Stop what listens there, or name another --port."
            raise ConfigError(f"Cannot listen on {host}:{port}: {error.strerror}.", hint=hint) from error
        port = listening.getsockname()[1]
        settings = Settings(model=model, folder=out, host=host, port=port, token=token, device=device, history=history)
        app = create_app(settings)
        address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/"  # noqa: S104 (it is compared with)
        typer.echo(f"NeuronScope shows {model} at {address}  (Ctrl-C ends it; what it keeps is in {out})")
        if not no_browser:
            typer.launch(address)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        server.run(sockets=[listening])


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (weights, candidates, impact, importance, batch, compare, serve):
        app.command()(command)


def _analyzer(name: str) -> PruningImpactAnalyzer:
    from neuronscope.impact import PruningImpactAnalyzer
    from neuronscope.loader import MultiModelLoader
    from tracker.progress import step

    with step(f"Loading {name}"):
        return PruningImpactAnalyzer(*MultiModelLoader().load_model(name))


def _weights(analyzer: PruningImpactAnalyzer) -> Any:
    from neuronscope.weights import WeightAnalyzer

    return WeightAnalyzer(analyzer.model, analyzer.neurons)


def _inputs(analyzer: PruningImpactAnalyzer, texts: list[str] | None) -> list[Any]:
    from neuronscope.samples import sample_inputs

    return list(texts) if texts else sample_inputs(analyzer.model, analyzer.tokenizer)


def _pairs(text: str) -> list[tuple[int, int]]:
    """(layer, neuron) pairs of "0:3,0:10-20,5:7"."""
    from tracker.errors import DataError

    found: list[tuple[int, int]] = []
    for part in text.split(","):
        layer, _, neurons = part.strip().partition(":")
        first, _, last = neurons.partition("-")
        try:
            found += [(int(layer), neuron) for neuron in range(int(first), int(last or first) + 1)]
        except ValueError:
            raise DataError(
                f"'{part.strip()}' names no neurons.", hint="Write layer:neuron, such as 0:3 or 0:10-20."
            ) from None
    if not found:
        raise DataError(f"'{text}' names no neurons.", hint="Write layer:neuron, such as 0:3 or 0:10-20.")
    return found


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0, overflow="fold")
    return table


def _print(found: Any) -> None:
    typer.echo(json_module.dumps(found, allow_nan=False, ensure_ascii=False))


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _number(value: float) -> float | None:
    return None if value != value else value
