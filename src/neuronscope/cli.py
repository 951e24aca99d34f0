"""The command `neuronscope`. Each subcommand reads its words, calls the packages, and shows what they answer.

The packages are imported inside the commands, because torch alone takes seconds, and `--help` should take none.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from neuronscope import cli_analysis

if TYPE_CHECKING:
    from torch import nn

    from pruner.config import PruningConfig
    from pruner.manifest import Manifest
    from pruner.plan import PruningPlan
    from tracker.neuron_map import NeuronMap


class _Commands(TyperGroup):
    """Shows an error of ours as one red line instead of a traceback, and exits with status 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from tracker.errors import NeuronScopeError

            if not isinstance(error, NeuronScopeError) or ctx.params.get("debug"):
                raise
            line = " ".join(f"Error: {error}".split())
            Console(stderr=True).print(Text(line, style="red"), soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the neurons of a PyTorch model, see what they do, remove the idle ones, and prove the result right.",
)

_NAMES = "A directory, stdlib-gpt, digits-cnn, module:callable, timm:NAME, torchvision:NAME, or a transformers name."
_DATA = "digits, digits-test, stdlib, stdlib-test, or module:callable that gives an iterable of batches."

Model = Annotated[str, typer.Argument(help=_NAMES, show_default=False)]
Data = Annotated[str, typer.Option(help=_DATA, show_default=False)]
Original = Annotated[
    str | None, typer.Option(help="For a pruned checkpoint: the model it was made from.", show_default=False)
]
Out = Annotated[Path, typer.Option(help="The directory of all outputs.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Read by `_Commands`."""


@app.command()
def demo(out: Out = Path("outputs")) -> None:
    """Train a small network on handwritten digits, prune it, prove it, and write a report."""
    from neuronscope.demo import run

    run(Console(), out)


@app.command("map")
def map_(
    model: Model,
    data: Annotated[str | None, typer.Option(help=f"Where its inputs come from: {_DATA}", show_default=False)] = None,
    original: Original = None,
    json: Annotated[
        Path | None, typer.Option(help="Also write the map to this file.", dir_okay=False, show_default=False)
    ] = None,
) -> None:
    """Show which neurons a model has, and why the rest of it cannot be removed."""
    from neuronscope.data_names import load_data
    from tracker import discover

    loaded = _load(model, original)
    neurons = discover(loaded, data_loader=load_data(data) if data else None)
    typer.echo(str(neurons))
    if json is not None:
        neurons.save(json)
        _written("The neuron map", json)


@app.command()
def track(
    model: Model,
    data: Data,
    covariance: Annotated[
        bool, typer.Option("--covariance", help="Also look for redundant neurons: n² numbers for a layer of n.")
    ] = False,
    original: Original = None,
    out: Out = Path("outputs"),
) -> None:
    """See what the neurons do on data, and recommend which to prune, merge or expand."""
    from neuronscope.data_names import load_data
    from pruner.outputs import file_name_of
    from tracker.engine import NeuronEngine

    engine = NeuronEngine(output_dir=out, covariance=covariance)
    loaded = _load(model, original)
    engine.track_model(loaded, _short(model))
    engine.observe(loaded, load_data(data))
    recommendations = engine.recommend()
    table = Table("layer", "kind", "neurons", "recommended to go", "fires (median)", box=None, pad_edge=False)
    for name, layer in recommendations.layers.items():
        going = sum(entry.layer == name for entry in recommendations.prune)
        fires = f"{median(layer.activity.firing_frequency):.1%}" if layer.activity else ""
        table.add_row(Text(name), layer.kind, str(layer.size), str(going), fires)
    Console().print(table)
    path = out / "logs" / f"{file_name_of(_short(model))}_recommendations.json"
    engine.save_recommendations(path)
    _written("The recommendations", path)


@app.command()
def prune(
    model: Model,
    data: Data,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of all neurons to remove, from 0 to 1.", show_default=False)
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Share of the model to keep instead: params=0.5, flops=0.5 or latency=0.7.", show_default=False
        ),
    ] = None,
    effort: Annotated[str, typer.Option(help="With --target: low, default or high.")] = "default",
    strategy: Annotated[
        str | None,
        typer.Option(
            help="magnitude, structured, gradual, wanda, flap, obs, greedy, taylor, … or a registered name.",
            show_default=False,
        ),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Only layers like this lose neurons: 'blocks.*'.", show_default=False)
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Layers like this lose none: 'blocks.0.*'.", show_default=False)
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only layers of this kind: mlp, attention, channel, residual, expert.", show_default=False),
    ] = None,
    round_to: Annotated[
        int | None, typer.Option(help="Keep widths that are multiples of this.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML or JSON configuration.", dir_okay=False, show_default=False)
    ] = None,
    recommendations: Annotated[
        Path | None,
        typer.Option(help="What track wrote; else the model is tracked first.", dir_okay=False, show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Go all the way but the last step: change nothing.")
    ] = False,
    original: Original = None,
    out: Out = Path("outputs"),
) -> None:
    """Remove neurons, prove that the smaller model is right, and store it with a report."""
    from neuronscope.data_names import load_data
    from neuronscope.model_names import base_of
    from pruner.report_text import difference, short
    from pruner.workflow import IntegratedTrackingPruningWorkflow

    wanted = {
        "target_sparsity": sparsity,
        "default_strategy": strategy,
        "include": include,
        "exclude": exclude,
        "kinds": kind,
        "round_to": round_to,
    }
    workflow = IntegratedTrackingPruningWorkflow(_configuration(config, wanted), output_dir=out)
    results = workflow.run_complete_workflow(
        model=_load(model, original),
        data_loader=load_data(data),
        model_name=_short(model),
        auto_prune=not dry_run,
        recommendations=recommendations,
        base=base_of(model, original),
        target=_target(target),
        effort=effort,
    )
    pruning = results["pruning_results"]
    table = Table("layer", "neurons", "left", box=None, pad_edge=False)
    for name, layer in pruning["layers"].items():
        table.add_row(Text(name), str(layer["before"]), str(layer["after"]))
    console = Console()
    console.print(table)
    verb = "would go" if dry_run else "are gone"
    typer.echo(f"{pruning['neurons_pruned']} of {pruning['neurons_before']} neurons {verb}.")
    if repair := pruning.get("repair"):
        alone, kept = (short(repair["distances"][step]) for step in ("removed", repair["kept"]))
        typer.echo(f"Distance to the dense model's answers: {alone} by the removal alone, {kept} as repaired.")
    if not dry_run:
        summary = results["verification_results"]["summary"]
        typer.echo(f"Verification: {summary['passed']}/{summary['total']} tests passed.")
        if measured := results["verification_results"]["measured"]:
            typer.echo(difference(measured))
    for what, path in results["report"].items():
        _written(f"The report ({what})", path)


@app.command()
def optimize(
    model: Model,
    data: Data,
    judge: Annotated[str, typer.Option(help=f"Data to judge by, not to learn from: {_DATA}", show_default=False)],
    tolerance: Annotated[
        float | None, typer.Option(help="How much worse than the dense model it may be.", show_default=False)
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="The size instead: params=0.5, flops=0.5 or latency=0.7; then the best.", show_default=False),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="accuracy, loss, distance (from the dense answers), or module:callable.", show_default=False),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only layers of this kind: mlp, attention, channel.", show_default=False)
    ] = None,
    effort: Annotated[str, typer.Option(help="low, default or high.")] = "low",
    resolution: Annotated[float, typer.Option(help="How finely sizes are searched, a share.")] = 0.01,
    trials: Annotated[int, typer.Option(help="Evaluations more for shares by kind (needs Optuna).")] = 0,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    original: Original = None,
    out: Out = Path("outputs"),
) -> None:
    """Find the smallest model that is still good enough, or the best one of a size; goes on where it was stopped."""
    from neuronscope.data_names import load_data
    from neuronscope.judging import metric_of
    from neuronscope.model_names import base_of
    from pruner import optimize as search
    from pruner import save_pruned
    from pruner.outputs import file_name_of

    loaded, batches = _load(model, original), list(load_data(judge))
    name, value = metric_of(metric, loaded, batches)
    folder = out / "optimize" / file_name_of(_short(model))
    results = search(
        loaded,
        load_data(data),
        value,
        tolerance=tolerance,
        target=_target(target),
        kinds=kind or (),
        effort=effort,
        resolution=resolution,
        trials=trials,
        folder=folder,
        seed=seed,
    )
    found = results["search"]
    table = Table("parameters left", name, "layers share by", "", box=None, pad_edge=False)
    for point in found["front"]:
        chosen = "chosen" if point == found["chosen"] else ""
        table.add_row(f"{point['parameters']:.1%}", f"{point['metric']:.4g}", point["rule"], chosen)
    table.add_row("100.0%", f"{found['dense']:.4g}", "", "dense")
    Console().print(table)
    if found["chosen"] is None:
        typer.echo("No smaller model is good enough.")
        return
    summary = results["verification"]["summary"]
    typer.echo(f"Verification: {summary['passed']}/{summary['total']} tests passed.")
    save_pruned(loaded, folder / "model", base=base_of(model, original))
    for what, path in (("The smaller model", folder / "model"), ("The front", folder / "front.png")):
        _written(what, path)


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="A pruned checkpoint.", show_default=False)],
    original: Annotated[str, typer.Option(help=f"The model it was made from. {_NAMES}", show_default=False)],
    data: Data,
) -> None:
    """Prove that a stored pruned model computes what its original does with the same neurons silenced."""
    from neuronscope.data_names import load_data
    from pruner.checkpoint import load_pruned
    from pruner.manifest import read_manifest
    from pruner.report_text import difference
    from pruner.verification import verify as verify_model
    from tracker import discover

    dense, batches = _load(original, None), load_data(data)
    pruned = load_pruned(directory, dense)
    neurons = discover(dense, data_loader=batches)
    plan = _removed(read_manifest(directory), neurons)
    report = verify_model(pruned, dense, plan, batches, neurons=neurons, checkpoint=directory)
    table = Table("check", "", "found", box=None, pad_edge=False)
    for check in report.checks:
        table.add_row(check.name, "passed" if check.passed else "FAILED", Text(check.detail))
    Console().print(table)
    for reason in report.not_checked:
        typer.echo(f"Not checked: {reason}.")
    if report.measured is not None:
        typer.echo(difference(report.measured.to_json()))
    typer.echo(f"Verification: {report}.")
    if report.failures:
        raise typer.Exit(1)


@app.command("export")
def export_(
    model: Model,
    out: Annotated[
        Path,
        typer.Argument(
            help="The file to write: the model as .onnx or .pt2, its neurons as .json, .csv, .parquet or .npz.",
            dir_okay=False,
            show_default=False,
        ),
    ],
    data: Annotated[str | None, typer.Option(help=f"Where its inputs come from: {_DATA}", show_default=False)] = None,
    format: Annotated[
        str | None, typer.Option(help="onnx or pt2; by default what the file's name says.", show_default=False)
    ] = None,
    type: Annotated[str, typer.Option(help="Of the neurons: weight, or impact (estimated on samples).")] = "weight",
    original: Original = None,
) -> None:
    """Write a model for another runtime, run it there, and compare; or write what is known of its neurons."""
    if out.suffix in (".json", ".csv", ".parquet", ".npz"):
        _written("The neurons", cli_analysis.export_table(model, out, type))
        return
    from neuronscope.data_names import load_data
    from pruner.exporting import export
    from tracker.example_inputs import first_batch_call

    loaded = _load(model, original)
    call = first_batch_call(loaded, load_data(data)) if data else None
    written = export(loaded, out, *((call.args, call.kwargs) if call else ()), format=format)
    rows = "any number of rows" if written.dynamic_batch else f"as many rows as the example ({written.why_static})"
    typer.echo(
        f"Compared with the model: {written.output} differs by {written.error:.1e} of its largest value, "
        f"{written.tolerance:.1e} is allowed. It takes {rows}."
    )
    _written("The model", written.path)


cli_analysis.register(app)


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="latest, the name of a run, or the path of a report.")] = "latest",
    out: Out = Path("outputs"),
) -> None:
    """Open the report of a past run; print its path."""
    from pruner.report_files import open_report

    path = open_report(name, out)
    typer.echo(path)
    if sys.stdout.isatty():
        typer.launch(str(path))


def _load(name: str, original: str | None) -> nn.Module:
    from neuronscope.model_names import load_model
    from tracker.progress import step

    with step(f"loading {name}"):
        return load_model(name, original=original)


def _configuration(path: Path | None, strategy: dict[str, Any]) -> PruningConfig:
    """That of a file, or the default one, under the options of `strategy` that were given."""
    from pruner.config import PruningConfig, create_default_config

    start = PruningConfig.from_file(path) if path else create_default_config()
    return start.update(strategy={option: value for option, value in strategy.items() if value not in (None, [])})


def _target(text: str | None) -> dict[str, float] | None:
    """`params=0.5` as a target."""
    if text is None:
        return None
    what, _, share = text.partition("=")
    try:
        return {what.strip(): float(share)}
    except ValueError:
        from tracker.errors import PlanError

        hint = "Write params=0.5, flops=0.5 or latency=0.7."
        raise PlanError(f"--target '{text}' is not understood.", hint=hint) from None


def _removed(manifest: Manifest, neurons: NeuronMap) -> PruningPlan:
    """The plan that leads from the dense model to a checkpoint, in one step where there may have been several."""
    from pruner.plan import PruningPlan

    gone = {name: set(range(neurons[name].size)) - set(kept) for name, kept in manifest.kept.items()}
    return PruningPlan(gone, fingerprint=manifest.dense_fingerprint)


def _short(name: str) -> str:
    """What a run on this model is called."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def _written(what: str, path: Path | str) -> None:
    typer.echo(f"{what}: {path}")
