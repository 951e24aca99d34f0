"""`recover`: train a pruned model for a while, so that it is as good again as it can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pruner.low_rank import adapted
from pruner.quality import Metric, judged
from pruner.recovery_loss import Loss, Objective, Weights
from tracker.admission import admitted, admitted_for_change
from tracker.batches import Batch, as_batch
from tracker.caches import decoding_off
from tracker.compiled import as_written
from tracker.errors import DataError, PlanError
from tracker.progress import progress

Log = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True)
class Check:
    """A look at the training after `step` steps: the mean loss since the last one, and the caller's metric."""

    step: int
    loss: float
    metric: float | None


@dataclass(frozen=True)
class Recovery:
    """What came of it. `before` and `after` are the caller's metric, None without one; `best_step` is the step whose
    weights the model has, 0 for those it had; `steps` were taken.
    """

    before: float | None
    after: float | None
    best_step: int
    steps: int
    checks: tuple[Check, ...]


def recover(
    model: nn.Module,
    data: Iterable[Any],
    *,
    steps: int,
    teacher: nn.Module | None = None,
    labels: float | None = None,
    answers: float = 1.0,
    hidden: float = 0.0,
    temperature: float = 1.0,
    loss: Loss | None = None,
    lora: int | None = None,
    metric: Metric | None = None,
    checks: int = 10,
    patience: int = 3,
    learning_rate: float | None = None,
    optimizer: Optimizer | None = None,
    log: Log | None = None,
    seed: int = 0,
) -> Recovery:
    """Train `model` in place, on labels or on the answers of the dense model.

    The best weights seen by `metric`, the first ones included, are what the model has in the end; without a metric, the
    last ones. That is so, too, where an error or Ctrl-C ends it. Parameters that are frozen stay so.

    Args:
        model: the pruned model, or any other.
        data: batches as `compress` takes them, gone through as often as it takes.
        steps: how many batches are learned from.
        teacher: the dense model, whose answers are to be learned. Needs no labels.
        labels, answers, hidden: how much the labels, the teacher's answers and what its blocks write count in the loss.
            Labels count 1 without a teacher or with a `loss`, else 0 unless given.
        temperature: at which answers that choose among classes are compared.
        loss: (output, batch as the loader gave it) → what falls, in place of the loss by the labels.
        lora: the rank of adapters that are trained instead of the weights, and merged into them in the end.
        metric: model → number, larger is better; evaluated on data of the caller's that `data` does not hold.
        checks: how often the metric is asked, evenly over the steps.
        patience: the training ends early when so many checks in a row were no better.
        learning_rate: of AdamW, warmed up and then lowered along a cosine; by default 1e-4, with adapters 1e-3.
        optimizer: instead, the one that trained the model so far, as it is.
        log: gets the numbers of every check, by name, and its step.
        seed: of all random numbers.

    Raises:
        PlanError: options that make no sense together, or a teacher that does not fit.
        DataError: no batches, batches without labels where those count, a loss or a metric that is no finite number.
        MissingExtraError: `lora` without peft.
    """
    by_labels = float(teacher is None or loss is not None) if labels is None else labels
    weights = Weights(by_labels, answers if teacher is not None else 0.0, hidden)
    _check(steps, checks, patience, lora, weights, teacher, temperature, optimizer, learning_rate)
    bare = admitted_for_change(model)
    dense = admitted(teacher) if teacher is not None else None
    if dense is bare:
        raise PlanError("The teacher is the model itself.", hint="Keep a copy before pruning: copy.deepcopy(model).")
    objective = Objective(bare, weights, dense, temperature, loss)
    rate = learning_rate if learning_rate is not None else (1e-4 if lora is None else 1e-3)
    with ExitStack() as stack:
        stack.enter_context(_seeded(bare, seed))
        stream = _forever(data, bare)
        first = next(stream)
        objective.look(*first)
        before = _judged(metric, bare)
        original = _Kept(bare, bare.parameters()) if lora is not None else None
        adapters = stack.enter_context(adapted(bare, lora)) if lora is not None else None
        own = adapters.parameters if adapters is not None else [p for p in bare.parameters() if p.requires_grad]
        if not own:
            raise PlanError(
                "All parameters are frozen.", hint="Unfreeze some with requires_grad_(True), or give lora=."
            )
        course = _Course(bare, own, before, steps, checks, patience, metric, log)
        stack.enter_context(_training(bare, dense, own))
        stepper = _Stepper(own, optimizer, rate, steps)
        try:
            for step in progress(range(1, steps + 1), "Recovering"):
                raw, batch = first if step == 1 else next(stream)
                if course.over(step, stepper.step(partial(objective, raw, batch))):
                    break
        finally:
            course.take_best()
            if adapters is not None and course.best_step:
                adapters.merge()
        after = _judged(metric, bare)
        if original is not None and after is not None and before is not None and after < before:
            original.restore()  # merging rounds, and made of a little more a little less
            return Recovery(before, before, 0, course.steps, tuple(course.checks))
    return Recovery(before, after, course.best_step, course.steps, tuple(course.checks))


class _Kept:
    """The values of parameters and of all buffers, to go back to. A module may put other tensors in for buffers."""

    def __init__(self, model: nn.Module, parameters: Iterable[Tensor]) -> None:
        self._model = model
        self._values = [(x, x.detach().clone()) for x in parameters]
        self._buffers = {name: x.detach().clone() for name, x in model.named_buffers()}

    def restore(self) -> None:
        for tensor, value in self._values:
            tensor.data.copy_(value)
        for name, buffer in self._model.named_buffers():
            if name in self._buffers:
                buffer.data.copy_(self._buffers[name])


class _Course:
    """How the training goes: what was measured, which weights were the best, and whether it is over."""

    def __init__(
        self,
        model: nn.Module,
        own: Sequence[nn.Parameter],
        before: float | None,
        steps: int,
        checks: int,
        patience: int,
        metric: Metric | None,
        log: Log | None,
    ) -> None:
        self._model, self._own, self._metric, self._log = model, own, metric, log
        self._every, self._last, self._patience = max(1, round(steps / checks)), steps, patience
        self._best, self._kept, self._worse = before, _Kept(model, own), 0
        self._losses: list[Tensor] = []
        self.best_step = self.steps = 0
        self.checks: list[Check] = []

    def over(self, step: int, loss: Tensor) -> bool:
        """A step was taken; raises `DataError` where the loss is no number any more."""
        self.steps = step
        self._losses.append(loss.detach())
        if step % self._every and step != self._last:
            return False
        mean = float(torch.stack(self._losses).mean())
        self._losses = []
        if not math.isfinite(mean):
            raise DataError(
                f"The loss became {mean} within the steps up to {step}.",
                hint="The model has the best weights seen before. Lower the learning rate, and look at the data.",
            )
        value = _judged(self._metric, self._model)
        self.checks.append(Check(step, mean, value))
        if self._log is not None:
            numbers = {"recovery/loss": mean} | ({} if value is None else {"recovery/metric": value})
            self._log(numbers, step)
        if value is None or self._best is None or value > self._best:
            self._best, self.best_step, self._worse = value, step, 0
            self._kept = _Kept(self._model, self._own)
        else:
            self._worse += 1
        return self._worse >= self._patience

    def take_best(self) -> None:
        """Give the model the best weights that were seen."""
        self._kept.restore()


class _Stepper:
    """Steps of an optimizer. Half-precision parameters have float32 copies, or small steps would be rounded away."""

    def __init__(
        self, own: Sequence[nn.Parameter], optimizer: Optimizer | None, learning_rate: float, steps: int
    ) -> None:
        self._own = own
        self._masters: list[Tensor] = list(own)
        self._schedule: Any = None
        if optimizer is None:
            self._masters = [p if p.itemsize >= 4 else p.detach().float().requires_grad_() for p in own]
            optimizer = torch.optim.AdamW(self._masters, lr=learning_rate, weight_decay=0.0)
            warm_up = max(1, steps // 20)
            self._schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3)
            )
        elif not {id(p) for group in optimizer.param_groups for p in group["params"]} & set(map(id, own)):
            raise PlanError(
                f"The {type(optimizer).__name__} holds no parameter of this model that takes gradients.",
                hint="Pass the optimizer that trains this model, or none.",
            )
        self._optimizer = optimizer

    def step(self, loss: Callable[[], Tensor]) -> Tensor:
        for parameter in self._own:
            parameter.grad = None
        value = loss()
        value.backward()
        for parameter, master in zip(self._own, self._masters, strict=True):
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        nn.utils.clip_grad_norm_(self._masters, 1.0)
        self._optimizer.step()
        for parameter, master in zip(self._own, self._masters, strict=True):
            if master is not parameter:
                parameter.data.copy_(master.detach())
        if self._schedule is not None:
            self._schedule.step()
        return value


def _check(
    steps: int,
    checks: int,
    patience: int,
    lora: int | None,
    weights: Weights,
    teacher: nn.Module | None,
    temperature: float,
    optimizer: Optimizer | None,
    learning_rate: float | None,
) -> None:
    for name, number in (("steps", steps), ("checks", checks), ("patience", patience), ("lora", lora)):
        if number is not None and (type(number) is not int or number < 1):
            raise PlanError(f"{name} = {number!r} is not a number from 1 up.", hint="Give a whole number.")
    for name, weight in (*vars(weights).items(), ("learning_rate", learning_rate)):
        if weight is not None and not 0 <= weight < math.inf:
            raise PlanError(f"{name} = {weight!r} is not a number from 0 up.", hint="Give a finite number.")
    if not 0 < temperature < math.inf:
        raise PlanError(f"temperature = {temperature!r} is not above 0.", hint="Give 1, or 2 to 4 for softer answers.")
    if weights.hidden and teacher is None:
        raise PlanError("hidden states are learned from a teacher.", hint="Give teacher=, the dense model.")
    if not (weights.labels or weights.answers or weights.hidden):
        raise PlanError("Nothing counts in the loss.", hint="Give labels, answers or hidden a weight above 0.")
    if optimizer is not None and (lora is not None or learning_rate is not None):
        other = "lora" if lora is not None else "learning_rate"
        raise PlanError(f"Give an optimizer or {other}, not both.", hint="An optimizer is used as it is.")


def _judged(metric: Metric | None, model: nn.Module) -> float | None:
    return None if metric is None else judged(metric, model)


def _forever(data: Iterable[Any], model: nn.Module) -> Iterator[tuple[Any, Batch]]:
    """The batches over and over; raises `DataError` where there are none, or one cannot be used."""
    first = True
    while True:
        index = -1
        for index, raw in enumerate(data):
            try:
                yield raw, as_batch(raw, model)
            except DataError as error:
                raise DataError(f"Batch {index}: {error.what}", hint=error.hint) from error
        if index < 0:
            raise DataError(
                "The data is empty." if first else "The data was used up: it can only be gone through once.",
                hint="Give a list of batches or a DataLoader.",
            )
        first = False


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers from this seed; afterwards they are as before."""
    cuda = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


@contextmanager
def _training(model: nn.Module, teacher: nn.Module | None, own: Sequence[nn.Parameter]) -> Iterator[None]:
    """The model in training mode (its parts as they are, if it is already), the teacher in evaluation mode."""
    modules = [*model.modules(), *(teacher.modules() if teacher is not None else ())]
    modes = [(module, module.training) for module in modules]
    gradients = [(p, p.grad) for p in own]
    try:
        if not model.training:
            model.train()
        if teacher is not None:
            teacher.eval()
        with torch.enable_grad(), as_written(), decoding_off(model):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient
