"""Criteria that weigh what a neuron says by the weights that read it."""

from __future__ import annotations

import torch

from pruner.criteria.evidence import Evidence, register
from pruner.scores import Scores


@register("wanda")
def wanda(evidence: Evidence) -> Scores:
    """Σ_i |W_ij| · ‖x_j‖₂, the norm as a root mean square (Sun et al. 2024, "A Simple and Effective Pruning Approach
    for LLMs", summed over outputs as in the structured Wanda-sp of An et al. 2024).
    """
    found: Scores = {}
    for name, readers in evidence.read("wanda"):
        total = torch.zeros(evidence.neurons[name].size, dtype=torch.float64)
        for seen in readers:
            moments = seen.moments.double()
            rms = (moments.xx.diagonal() + moments.mean_x.square()).clamp(min=0).sqrt()
            total += seen.summed(seen.matrix.abs().sum(0) * rms)
        found[name] = total
    return evidence.complete(found)


@register("flap")
def flap(evidence: Evidence) -> Scores:
    """Var(x_j) · ‖W_:j‖₂²: how much a neuron fluctuates about the mean that a bias can stand in for (An et al. 2024,
    "Fluctuation-based Adaptive Structured Pruning", eq. 4).
    """
    found: Scores = {}
    for name, readers in evidence.read("flap"):
        total = torch.zeros(evidence.neurons[name].size, dtype=torch.float64)
        for seen in readers:
            total += seen.summed(seen.matrix.square().sum(0) * seen.moments.xx.diagonal().double())
        found[name] = total
    return evidence.complete(found)
