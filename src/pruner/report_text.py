"""Numbers as a person reads them, and the sentences made of them."""

from collections.abc import Mapping
from typing import Any

_SAME_SPEED = 0.03
"""Two timings closer than this share are called equal: that is what the same model differs by from run to run."""

_TELLING = {
    "dead": ("firing_frequency", "maximum"),
    "constant": ("mean",),
    "inactive": ("firing_frequency",),
    "redundant": ("correlation", "same_as"),
}
"""Which of the measured numbers speak for a reason."""


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "neuron"), count(1200, "neuron")
    ('1 neuron', '1,200 neurons')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short(value: float | None) -> str:
    """A number in three digits, with k, M, G or T where it is large; "not measured" for None.

    >>> short(46234), short(0.98712), short(7)
    ('46.2 k', '0.987', '7')
    """
    if value is None:
        return "not measured"
    if isinstance(value, int) and abs(value) < 10_000:
        return f"{value:,}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{_three_digits(value / size)} {letter}"
    return _three_digits(value)


def bytes_of(value: float) -> str:
    """A number of bytes.

    >>> bytes_of(184_000)
    '180 KiB'
    """
    for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{_three_digits(value / size)} {unit}"
    return f"{value:.0f} B"


def milliseconds(value: float) -> str:
    """A duration given in milliseconds.

    >>> milliseconds(0.0421), milliseconds(1530.0)
    ('42.1 µs', '1.53 s')
    """
    if value >= 1000:
        return f"{_three_digits(value / 1000)} s"
    return f"{_three_digits(value)} ms" if value >= 1 else f"{_three_digits(value * 1000)} µs"


def percent(share: float) -> str:
    """A share from 0 to 1, with a decimal where it is small.

    >>> percent(0.2113), percent(0.005), percent(0.0)
    ('21 %', '0.5 %', '0 %')
    """
    value = 100 * share
    if value == 0 or abs(value) >= 9.95:
        return f"{value:.0f} %" if abs(value) < 99.5 or value in (100, -100) else f"{value:.1f} %"
    return f"{value:.1f} %" if abs(value) >= 0.05 else f"{value:.1g} %"


def speed(before_ms: float, after_ms: float) -> str:
    """How the second duration compares with the first.

    >>> speed(1.3, 1.0), speed(1.0, 1.01), speed(1.0, 1.5)
    ('1.3× faster', 'as fast as before', '1.5× slower')
    """
    if abs(before_ms - after_ms) <= _SAME_SPEED * before_ms:
        return "as fast as before"
    if after_ms < before_ms:
        return f"{_ratio(before_ms / after_ms)}× faster"
    return f"{_ratio(after_ms / before_ms)}× slower"


def smaller(before: int, after: int) -> str:
    """How much smaller the second size is.

    >>> smaller(200, 158), smaller(200, 200)
    ('21 % smaller', 'as large as before')
    """
    if after == before:
        return "as large as before"
    return f"{percent(1 - after / before)} smaller" if after < before else f"{percent(after / before - 1)} larger"


def quality(name: str, before: float, after: float, *, as_percent: bool = False) -> str:
    """A quality before and after.

    >>> quality("accuracy", 0.978, 0.976, as_percent=True), quality("cosine", 1.0, 1.0)
    ('accuracy 97.8 → 97.6 %', 'cosine still 1')
    """
    first, second = (f"{100 * before:.1f}", f"{100 * after:.1f}") if as_percent else (short(before), short(after))
    unit = " %" if as_percent else ""
    return f"{name} still {second}{unit}" if first == second else f"{name} {first} → {second}{unit}"


def evidence(reason: str, numbers: Mapping[str, float]) -> str:
    """What was measured of a neuron, as far as it bears on the reason given.

    >>> evidence("inactive", {"firing_frequency": 0.004, "mean_magnitude": 0.02})
    'fires on 0.4 %'
    >>> evidence("redundant", {"correlation": 0.9834, "same_as": 9.0})
    'correlates at 0.983 with neuron 9'
    """
    words = {
        "firing_frequency": lambda value: f"fires on {percent(value)}",
        "maximum": lambda value: f"reaches {value:.3g} at most",
        "mean": lambda value: f"stays at {value:.3g}",
        "correlation": lambda value: f"correlates at {value:.3f}",
        "same_as": lambda value: f"with neuron {value:.0f}",
    }
    told = [words[name](numbers[name]) for name in _TELLING.get(reason, ()) if name in numbers]
    return " ".join(told) if reason == "redundant" else ", ".join(told)


def difference(measured: Mapping[str, Any]) -> str:
    """What `pruner.difference.Measured` found where layers that are not exact lost neurons.

    >>> found = {"layers": {"embed": ""}, "relative_error": 0.12, "top1_agreement": 0.97, "exact_alone": None}
    >>> difference(found | {"accuracy_before": None, "accuracy_after": None})
    'Not exact: embed. Measured, not proven: the answers are 12 % off those before; 97 % keep their first choice.'
    """
    layers, alone = list(measured["layers"]), measured["exact_alone"]
    before, after = measured["accuracy_before"], measured["accuracy_after"]
    named = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    told = [f"the answers are {percent(measured['relative_error'])} off those before"]
    if alone:
        told[0] += f" ({percent(alone['relative_error'])} by the exact layers alone)"
    if measured["top1_agreement"] is not None:
        told.append(f"{percent(measured['top1_agreement'])} keep their first choice")
    if before is not None and after is not None:
        told.append(quality("accuracy", before, after, as_percent=True))
    return f"Not exact: {named}. Measured, not proven: {'; '.join(told)}."


def plain(value: object) -> str:
    """Data as words: text as it is, a mapping as "name value, name value".

    >>> plain({"median_saturation": 0.95})
    'median saturation 0.95'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _three_digits(value: float) -> str:
    """At least three significant digits, and no zeros after the point that say nothing."""
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 1.1 else f"{value:.1f}"
