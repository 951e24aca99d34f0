"""A training that is spread over several processes: the same plan on every one, or a clear word."""

from __future__ import annotations

import torch.distributed as dist

from pruner.plan import PruningPlan
from tracker.errors import PlanError


def agreed(plan: PruningPlan) -> PruningPlan:
    """The plan of rank 0, on every rank; call it on all of them. In a single process, the plan itself.

    `DistributedDataParallel` holds buffers of the sizes that gradients have now, so the module inside of it is pruned,
    on all ranks alike, and wrapped again; parameters keep their identity, and the optimizer its state:

        prune_(ddp.module, agreed(plan), optimizer=optimizer)
        ddp = DistributedDataParallel(ddp.module)

    Raises `PlanError` where another rank's plan is for a model of another structure.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return plan
    shared: list[dict[str, object]] = [plan.to_json()]
    dist.broadcast_object_list(shared, src=0)
    theirs = PruningPlan.from_json(shared[0])
    if theirs.fingerprint and plan.fingerprint and theirs.fingerprint != plan.fingerprint:
        raise PlanError(
            f"Rank 0 plans for a model of structure {theirs.fingerprint}; that of rank {dist.get_rank()} has "
            f"{plan.fingerprint}.",
            hint="Prune the same model on every rank.",
        )
    return theirs


def refuse_several(processes: int) -> None:
    """Raise `PlanError`, with the way to do it, where a trainer, which wraps models by itself, runs on several."""
    if processes > 1:
        raise PlanError(
            f"Training runs on {processes} processes, whose buffers have the sizes that gradients have now.",
            hint="Prune in one process; or in a loop of your own: prune the module inside of the wrapper with the same "
            "plan on every rank (pruner.distributed.agreed), and wrap it again.",
        )
