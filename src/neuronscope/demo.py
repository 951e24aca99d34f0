"""The whole of NeuronScope in one run on real data: train, track, recommend, prune, verify, report, store."""

from collections.abc import Callable
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from neuronscope.data_names import digits
from neuronscope.digits import trained_cnn
from pruner import report_text as text
from pruner.results import Measured, WorkflowResults
from pruner.workflow import IntegratedTrackingPruningWorkflow
from tracker.batches import accuracy

BATCH_SIZE = 256
BASE = "neuronscope.digits:DigitsCNN"


def run(console: Console, out: Path) -> WorkflowResults:
    """Train a small network on handwritten digits, prune it, prove it, and print one table; the files go to `out`.

    The network is tracked and verified on the images that it was trained on. Accuracy is the share of right answers on
    the images held out, before and after; the pruned network is not trained any further.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        StorageError: `out` cannot be written.
    """
    seen, held_out = digits(BATCH_SIZE)
    model = trained_cnn()
    results = IntegratedTrackingPruningWorkflow(output_dir=out).run_complete_workflow(
        model=model,
        data_loader=seen,
        model_name="digits",
        evaluate=lambda network: {"accuracy": accuracy(network, held_out) or 0.0},
        base=BASE,
    )
    summary = results["verification_results"]["summary"]
    console.print(_table(results, images=len(held_out.dataset)))  # type: ignore[arg-type]
    threads = text.count(torch.get_num_threads(), "thread")
    console.print(
        f"Latency: median forward of {BATCH_SIZE} images on {threads}, both networks taking turns.", style="dim"
    )
    console.print("Nothing was trained after the pruning; the weights that stay were solved for.\n", style="dim")
    console.print(f"Verification: {summary['passed']}/{summary['total']} tests passed")
    console.print(f"Report: {results['report']['html']}", soft_wrap=True)
    return results


def _table(results: WorkflowResults, images: int) -> Table:
    """The network before and after."""
    before, after = results["metrics"]["before"], results["metrics"]["after"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for row in _rows(before, after or before, images):
        table.add_row(*row)
    return table


def _rows(before: Measured, after: Measured, images: int) -> list[tuple[str, str, str, str]]:
    sizes: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("neurons", before["neurons"], after["neurons"], lambda value: f"{value:,.0f}"),
        ("parameters", before["parameters"], after["parameters"], lambda value: f"{value:,.0f}"),
        ("bytes", before["bytes"], after["bytes"], lambda value: f"{value:,.0f}"),
        ("FLOPs", before["flops"] or 0, after["flops"] or 0, text.short),
    ]
    rows = [(name, show(old), show(new), text.smaller(int(old), int(new))) for name, old, new, show in sizes]
    old, new = before["latency_ms"] or 0.0, after["latency_ms"] or 0.0
    rows.append(("latency", text.milliseconds(old), text.milliseconds(new), text.speed(old, new)))
    old, new = before["accuracy"] or 0.0, after["accuracy"] or 0.0
    shares = (f"{100 * old:.1f} %", f"{100 * new:.1f} %", f"{100 * (new - old):+.1f} points")
    rows.append((f"accuracy on {images} unseen images", *shares))
    return rows
