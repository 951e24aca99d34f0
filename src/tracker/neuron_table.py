"""A neuron map as a table that fits a terminal."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tracker.neuron_map import NeuronMap, Site


def neuron_table(neurons: NeuronMap, width: int = 120) -> str:
    """One row a group, then one row a frozen part with its reason."""
    console = Console(width=width, record=True, file=StringIO(), color_system=None)
    exact = sum(group.size for group in neurons if group.exact)
    console.print(
        Text(f"{neurons.model}: {neurons.neurons} neurons in {len(neurons)} layers, {exact} of them removed exactly")
    )
    table = Table("layer", "kind", "neurons", "exact", "read by", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for group in neurons:
        table.add_row(
            Text(group.name),
            group.kind,
            str(group.size),
            "yes" if group.exact else "no",
            Text(_modules(group.consumers) if group.exact else f"{_modules(group.consumers)} ({group.note})"),
        )
    console.print(table)
    if neurons.frozen:
        frozen = Table("frozen", "size", "because", box=None, pad_edge=False)
        frozen.columns[1].justify = "right"
        for entry in neurons.frozen:
            frozen.add_row(Text(entry.name), str(entry.size), Text(entry.reason))
        console.print()
        console.print(frozen)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def _modules(sites: tuple[Site, ...], limit: int = 3) -> str:
    names = list(dict.fromkeys(site.module or site.parameter for site in sites))
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
