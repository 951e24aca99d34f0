from collections.abc import Mapping
from typing import Any

import pytest

from pruner.config_search import Search, Sizes


def transformer(config: Mapping[str, Any]) -> Sizes | None:
    """The sizes of a model of two layers, as a class would compute them from its configuration."""
    width, heads = config["width"], config["heads"]
    head = config.get("head_dim") or width // heads
    if config.get("strict") and width % heads:
        return None
    sizes: dict[Any, int] = {("embed", 0): 100, ("embed", 1): width}
    for layer in range(2):
        sizes |= {
            (f"{layer}.q", 0): heads * head,
            (f"{layer}.fused", 0): (heads + 2 * config.get("groups", 0)) * head,
            (f"{layer}.up", 0): config.get("inner") or 4 * width,
            (f"{layer}.stage", 0): config.get("stages", [7, 7])[layer],
            (f"{layer}", ("heads",)): heads,
        }
    return sizes


def search(config: dict[str, Any], wanted: dict[str, Any], implied: dict[str, int] | None = None) -> list[Any]:
    target = transformer(wanted)
    assert target is not None
    return list(Search(config, target, transformer, implied or {}))


BASE = {"width": 32, "heads": 8, "head_dim": 4, "groups": 2, "inner": 128, "stages": [7, 7], "strict": False}


@pytest.mark.parametrize(
    "change",
    [
        {"inner": 96},
        {"heads": 6, "groups": 2},
        {"heads": 4, "groups": 1},
        {"heads": 4, "groups": 1, "inner": 3},
        {"stages": [5, 7]},
        {"stages": [5, 3], "inner": 64},
        {},
    ],
)
def test_the_configuration_is_found(change):
    assert search(BASE, BASE | change)[0] == BASE | change


def test_what_a_configuration_implied_is_written_down_when_it_would_change():
    implicit = {key: value for key, value in BASE.items() if key not in ("head_dim", "groups")}
    wanted = implicit | {"heads": 4, "head_dim": 4}
    assert search(implicit, wanted, {"head_dim": 4, "layer_number": 7}) == [wanted]
    assert search(implicit, wanted) == []


def test_an_attribute_that_is_none_is_tried_with_the_size_it_stands_for():
    assert search(BASE | {"inner": None}, BASE | {"inner": 96})[0] == BASE | {"inner": 96}


def test_nested_configurations():
    def both(config: Mapping[str, Any]) -> Sizes | None:
        parts = {key: transformer(config[key]) for key in ("text", "vision")}
        return {
            (f"{key}.{name}", dim): size for key, part in parts.items() for (name, dim), size in (part or {}).items()
        }

    start = {"text": {**BASE, "model_type": "t"}, "vision": {**BASE, "head_dim": None, "model_type": "v"}}
    wanted = {
        "text": {**start["text"], "inner": 64},
        "vision": {**start["vision"], "heads": 4, "groups": 1, "head_dim": 4},
    }
    target = both(wanted)
    assert target is not None
    assert wanted in list(Search(start, target, both, {"head_dim": 4}))


def test_where_layers_differ_there_is_none_and_the_reason_names_a_size():
    target = dict(transformer(BASE) or {}) | {("0.up", 0): 100, ("1.up", 0): 90}
    found = Search(BASE, target, transformer, {})
    assert list(found) == []
    assert found.reason == "no configuration makes dimension 0 of '0.up' 100 wide (128 before) and keeps the rest"


def test_a_size_that_the_class_refuses_is_no_solution():
    assert search(BASE | {"strict": True}, BASE | {"heads": 5}) == []


def test_several_meanings_are_all_given():
    def product(config: Mapping[str, Any]) -> Sizes:
        return {("q", 0): config["heads"] * config["head_dim"]}

    found = list(Search({"heads": 8, "head_dim": 4}, {("q", 0): 16}, product, {}))
    assert sorted((one["heads"], one["head_dim"]) for one in found) == [(4, 4), (8, 2)]


def test_a_dense_configuration_that_builds_nothing_is_the_reason():
    found = Search(BASE | {"strict": True, "heads": 5}, {}, transformer, {})
    assert list(found) == []
    assert "does not build its dense architecture" in found.reason
