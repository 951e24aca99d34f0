"""Which neurons can go with the least error once the others take over: greedy elimination by Schur complements.

For a consumer with the weights W and A = (C + λI)⁻¹, removing the columns g and re-solving the others costs

    tr(W_g [A_gg]⁻¹ W_gᵀ)

(Hassibi & Stork 1993 for one weight; Kwon et al. 2022 and Kurtic et al. 2023 for structures). After a removal A and W
become those of the smaller problem. Costs only need B = WᵀW, so a consumer is two matrices, A and B, and a removal two
updates of low rank:  A ← A − LᵀL with L = chol(A_gg)⁻¹ A_g,  B ← B − QᵀT − TᵀQ with T = A_gg⁻¹ A_g, Q = B_g − ½ B_gg T.
They are kept in a panel and applied to the whole matrices a block at a time, so that the order is exactly the greedy
one at the speed of matrix products. Neurons that several consumers read cost what they cost in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PANEL = 64
RIDGE = 1e-2
"""λ over the mean diagonal. Larger than what the weights are solved with: choosing overfits more easily."""
_SWAP_ROUNDS = 6


@dataclass(frozen=True)
class Problem:
    """One consumer's part in a removal.

    `xx` (n, n) are the second moments of what it reads, `matrix` (rows, n) its weights, `columns` (neurons, k) the
    columns of each neuron; columns that belong to no neuron stay. `weight` is what an error there counts.
    """

    xx: Tensor
    matrix: Tensor
    columns: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Elimination:
    """All neurons in the order in which they should go, and what each removal adds to the error: both (neurons,)."""

    order: Tensor
    costs: Tensor

    @property
    def curve(self) -> Tensor:
        """The error after 0, 1, 2, … removals: shape (neurons + 1,)."""
        return torch.cat([self.costs.new_zeros(1), self.costs.cumsum(0)])


def eliminate(problems: Sequence[Problem], count: int | None = None, *, ridge: float = RIDGE) -> Elimination:
    """The greedy order of removal of all neurons, or of the first `count`; the rest follows by its cost then."""
    size = problems[0].columns.shape[0]
    steps = size if count is None else min(count, size)
    states = [_State(problem, ridge) for problem in problems]
    device = states[0].a.device
    gone = torch.zeros(size, dtype=torch.bool, device=device)
    order = torch.zeros(size, dtype=torch.int64, device=device)
    costs = torch.zeros(size, dtype=torch.float64, device=device)
    for step in range(steps):
        cost = _total(states)
        cost = torch.where(gone, torch.inf, cost)
        chosen = cost.argmin()  # stays on the device: the host need not wait for it
        order[step], costs[step] = chosen, cost[chosen].clamp(min=0)
        gone[chosen] = True
        for state in states:
            state.remove(chosen)
    if steps < size:
        cost = torch.where(gone, torch.inf, _total(states))
        rest = cost.argsort()[: size - steps]
        order[steps:], costs[steps:] = rest, cost[rest].clamp(min=0)
    return Elimination(order, costs)


def one_shot(problems: Sequence[Problem], *, ridge: float = RIDGE) -> Tensor:
    """What the removal of each neuron alone would cost, the others taking over: shape (neurons,)."""
    return _total([_State(problem, ridge) for problem in problems])


def _total(states: Sequence[_State]) -> Tensor:
    return torch.stack([state.costs() * state.weight for state in states]).sum(0)


class _State:
    """A and B of one consumer, with the removals of the current panel not yet applied."""

    def __init__(self, problem: Problem, ridge: float) -> None:
        xx = problem.xx.double()
        scale = float(xx.diagonal().mean())
        scale = scale if scale > 0 else 1.0
        self.a = inverse(xx, ridge * scale)
        w = problem.matrix.double()
        self.b = w.T @ w
        self.columns = problem.columns
        self.weight = problem.weight
        self.width = problem.columns.shape[1]
        self.diagonal_a = _blocks(self.a, self.columns)
        self.diagonal_b = _blocks(self.b, self.columns)
        rows = max(PANEL, self.width)
        n = self.a.shape[0]
        self.l, self.t, self.q = (self.a.new_zeros(rows, n) for _ in range(3))
        self.filled = 0

    def costs(self) -> Tensor:
        """tr(A_gg⁻¹ B_gg) of every neuron."""
        if self.width == 1:
            return (self.diagonal_b / self.diagonal_a.clamp(min=1e-300)).flatten()
        factor = torch.linalg.cholesky_ex(self.diagonal_a)[0]
        return torch.cholesky_solve(self.diagonal_b, factor).diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, neuron: Tensor) -> None:
        """Take a neuron (its number, a scalar tensor) out."""
        if self.filled + self.width > len(self.l):
            self._apply()
        g = self.columns[neuron]
        a, b = self._row(self.a, g), self._row_of_b(g)
        gg, b_gg = a[:, g], b[:, g]
        factor = torch.linalg.cholesky_ex(gg)[0] if self.width > 1 else gg.clamp(min=1e-300).sqrt()
        lower = torch.linalg.solve_triangular(factor, a, upper=False)
        t = torch.linalg.solve_triangular(factor.T, lower, upper=True)
        q = b - 0.5 * b_gg @ t
        at = slice(self.filled, self.filled + self.width)
        self.l[at], self.t[at], self.q[at] = lower, t, q
        self.filled += self.width
        l_g, t_g, q_g = (x[:, self.columns].transpose(0, 1) for x in (lower, t, q))  # (neurons, width, width)
        self.diagonal_a -= l_g.transpose(1, 2) @ l_g
        cross = q_g.transpose(1, 2) @ t_g
        self.diagonal_b -= cross + cross.transpose(1, 2)

    def _row(self, matrix: Tensor, g: Tensor) -> Tensor:
        panel = self.l[: self.filled]
        return matrix[g] - panel[:, g].T @ panel

    def _row_of_b(self, g: Tensor) -> Tensor:
        q, t = self.q[: self.filled], self.t[: self.filled]
        return self.b[g] - q[:, g].T @ t - t[:, g].T @ q

    def _apply(self) -> None:
        lower, t, q = (x[: self.filled] for x in (self.l, self.t, self.q))
        self.a.addmm_(lower.T, lower, alpha=-1)
        self.b.addmm_(q.T, t, alpha=-1)
        self.b.addmm_(t.T, q, alpha=-1)
        self.filled = 0


def _blocks(matrix: Tensor, columns: Tensor) -> Tensor:
    """The diagonal block of every neuron: (neurons, width, width)."""
    return matrix[columns[:, :, None], columns[:, None, :]]


def inverse(matrix: Tensor, ridge: float) -> Tensor:
    """(M + ridge·I)⁻¹ of a positive semi-definite matrix."""
    system = matrix.clone()
    system.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info):
        system.diagonal().add_(1e-2 * float(matrix.diagonal().mean()))
        factor = torch.linalg.cholesky(system)
    return torch.cholesky_inverse(factor)


def swapped(problems: Sequence[Problem], gone: Tensor, *, ridge: float = RIDGE) -> tuple[Tensor, float, float]:
    """Trade removed neurons for kept ones while the error falls (Meng et al. 2024, "OSSCAR", local search).

    `gone` are the neurons removed. Several pairs are exchanged at a time, the worst of those kept for the best of those
    removed; half as many whenever that does not help. Returns what is gone in the end, and the error before and after.
    """
    size = problems[0].columns.shape[0]
    removed = torch.zeros(size, dtype=torch.bool, device=gone.device)
    removed[gone] = True
    systems = [_System(problem, ridge) for problem in problems]
    error, leave, enter = _look(systems, removed)
    first = error
    pairs = int(min(len(gone), size - len(gone), max(1, size // 32)))
    for _ in range(_SWAP_ROUNDS):
        if not pairs:
            break
        trial = removed.clone()
        trial[torch.where(removed, torch.inf, leave).topk(pairs, largest=False).indices] = True
        trial[torch.where(removed, enter, -torch.inf).topk(pairs).indices] = False
        new_error, new_leave, new_enter = _look(systems, trial)
        if new_error < error * (1 - 1e-9):
            removed, error, leave, enter = trial, new_error, new_leave, new_enter
        else:
            pairs //= 2
    return removed.nonzero().squeeze(1), first, error


def _look(systems: Sequence[_System], removed: Tensor) -> tuple[float, Tensor, Tensor]:
    """The error with these neurons gone, what each kept one would cost, and what each removed one would give back."""
    looks = [system.look(removed) for system in systems]
    return sum(error for error, _, _ in looks), *(sum(look[i] for look in looks) for i in (1, 2))  # type: ignore[return-value]


class _System:
    """One consumer, solved for any set of neurons at once."""

    def __init__(self, problem: Problem, ridge: float) -> None:
        self.h = problem.xx.double().clone()
        scale = float(self.h.diagonal().mean())
        self.h.diagonal().add_(ridge * (scale if scale > 0 else 1.0))
        self.w, self.columns, self.weight = problem.matrix.double(), problem.columns, problem.weight

    def look(self, removed: Tensor) -> tuple[float, Tensor, Tensor]:
        """See `_look`."""
        out = torch.zeros(self.h.shape[0], dtype=torch.bool, device=self.h.device)
        out[self.columns[removed].flatten()] = True
        p, s = out.nonzero().squeeze(1), (~out).nonzero().squeeze(1)
        inside = torch.cholesky_inverse(torch.linalg.cholesky(self.h[s][:, s]))
        sp = self.h[s][:, p]
        taken = inside @ sp
        schur = self.h[p][:, p] - sp.T @ taken
        w_p = self.w[:, p]
        left = w_p @ schur  # what the removed columns still explain
        new = self.w[:, s] + w_p @ taken.T
        error = float((left * w_p).sum()) * self.weight
        leave, enter = (torch.zeros(len(removed), dtype=self.h.dtype, device=self.h.device) for _ in range(2))
        leave[~removed] = _traces(inside, new, self._places(s, ~removed))
        enter[removed] = _traces(schur, left, self._places(p, removed))
        return error, leave * self.weight, enter * self.weight

    def _places(self, columns: Tensor, chosen: Tensor) -> Tensor:
        place = torch.zeros(self.h.shape[0], dtype=torch.int64, device=self.h.device)
        place[columns] = torch.arange(len(columns), device=self.h.device)
        return place[self.columns[chosen]]


def _traces(matrix: Tensor, w: Tensor, columns: Tensor) -> Tensor:
    """tr(w_g M_gg⁻¹ w_gᵀ) for every block g of columns."""
    blocks = _blocks(matrix, columns)
    w_g = w[:, columns].permute(1, 2, 0)  # (g, k, rows)
    factor = torch.linalg.cholesky_ex(blocks)[0]
    return (w_g * torch.cholesky_solve(w_g, factor)).sum((1, 2))
