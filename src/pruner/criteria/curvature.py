"""Criteria that ask what a removal costs once the other neurons have taken over."""

from __future__ import annotations

from pruner.compensation.elimination import Problem, eliminate, one_shot
from pruner.criteria.evidence import Evidence, Seen, register
from pruner.scores import Scores


@register("obs")
def obs(evidence: Evidence) -> Scores:
    """The error that the removal of each neuron alone leaves when all others are re-solved for: tr(W_g [H⁻¹]_gg⁻¹ W_gᵀ)
    (Hassibi & Stork 1993, "Optimal Brain Surgeon"; for structures Kurtic et al. 2023, "ZipLM").
    """
    found = {name: one_shot(_problems(readers)).cpu() for name, readers in evidence.read("obs")}
    return evidence.complete(found)


@register("greedy")
def greedy(evidence: Evidence) -> Scores:
    """The same, re-evaluated after every removal: the error at a layer up to and with the neuron's turn to go."""
    found: Scores = {}
    for name, readers in evidence.read("greedy"):
        elimination = eliminate(_problems(readers))
        scores = elimination.costs.new_zeros(len(elimination.order))
        scores[elimination.order] = elimination.curve[1:].cummax(0).values
        found[name] = scores.cpu()
    return evidence.complete(found)


def _problems(readers: list[Seen]) -> list[Problem]:
    problems = []
    for seen in readers:
        about = seen.moments if seen.consumer.bias is not None else seen.moments.about_zero()
        xx = about.xx.double()
        energy = float(((seen.matrix @ xx) * seen.matrix).sum())
        problems.append(Problem(xx, seen.matrix, seen.columns, 1.0 / max(energy, 1e-300)))
    return problems
