"""Meta-train a regression model on sines and lines, and draw adapted functions from it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leokit.config import RegressTrainConfig
from leokit.engine.state import by_group, pack_moments, restore_moments
from leokit.engine.steps import Diverged
from leokit.leo import clip_gradients, sums_of_squares
from leokit.leo import regression as leo
from leokit.leo.regression import Tensors
from leokit.regression.posterior import sine_probabilities
from leokit.regression.tasks import NOISE_STD, Floats, Tasks, draw_tasks

REPORT_EVERY = 100  # steps between lines of metrics
KEEP_EVERY = 500  # steps between states that are kept
TERMS = ("loss", *leo.RegressionLoss._fields[1:])
_BLOCK = 1024  # samples of functions that are adapted together
_SCANNED = 64  # tasks that are looked at together


@dataclass
class RegressionState:
    """Everything that the next step depends on, beside the configuration."""

    parameters: Tensors
    optimiser: torch.optim.Adam
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(TERMS), dtype=torch.float64))  # since the last report


def settings(config: RegressTrainConfig) -> leo.Settings:
    """How a configuration adapts."""
    return leo.Settings(config.inner_steps, config.inner_clip)


def new_state(config: RegressTrainConfig) -> RegressionState:
    """The state before the first step."""
    return _assemble(leo.initial_tensors(config.seed, inner_lr=config.inner_lr), config)


def _assemble(tensors: Tensors, config: RegressTrainConfig) -> RegressionState:
    parameters = {name: value.requires_grad_() for name, value in sorted(tensors.items())}
    return RegressionState(parameters, torch.optim.Adam(parameters.values(), lr=config.outer_lr, fused=True))


def pack(state: RegressionState) -> tuple[Tensors, dict[str, Any]]:
    """A state as tensors and plain data, for `runs.save_state`."""
    tensors = {f"parameters/{name}": value for name, value in state.parameters.items()}
    tensors |= pack_moments(state.parameters, state.optimiser)
    return tensors, {"step": state.step, "sums": state.sums.tolist()}


def unpack(tensors: Tensors, record: dict[str, Any], config: RegressTrainConfig) -> RegressionState:
    """The state that `pack` packed."""
    groups = by_group(tensors)
    state = _assemble(groups["parameters"], config)
    restore_moments(state.parameters, state.optimiser, groups, record["step"])
    state.step, state.sums = record["step"], torch.tensor(record["sums"], dtype=torch.float64)
    return state


def train(
    config: RegressTrainConfig,
    state: RegressionState,
    *,
    keep: Callable[[RegressionState], None],
    report: Callable[[dict[str, Any]], None],
    on_step: Callable[[int, str], None] = lambda step, text: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """Take the steps from `state.step` to the last, in place.

    Args:
        config: of the model.
        state: where to go on from.
        keep: saves a state; called now and then, at the end and before stopping early.
        report: takes a line of metrics.
        on_step: called with the number of steps taken and a line on how it goes.
        stop_requested: asked after each step.

    Returns:
        Whether it came to its end; False where a stop was requested.

    Raises:
        Diverged: a loss or gradient is not finite; the state before it was kept.
    """
    text = ""
    while state.step < config.steps:
        try:
            line = _take(config, state)
        except Diverged:
            keep(state)
            raise
        if line:
            report(line)
            text = f"loss {line['loss']:.2f} nats a query"
        stop = stop_requested()
        if stop or state.step % KEEP_EVERY == 0 or state.step == config.steps:
            keep(state)
        on_step(state.step, text)
        if stop and state.step < config.steps:
            return False
    return True


def learning_rate(config: RegressTrainConfig, step: int) -> float:
    """The learning rate of a step: from `outer_lr` to 0 along half a cosine."""
    return config.outer_lr * (1 + math.cos(math.pi * step / config.steps)) / 2


def _take(config: RegressTrainConfig, state: RegressionState) -> dict[str, Any] | None:
    """One step of Adam, in place; a line of metrics where one is due.

    Raises:
        Diverged: loss or gradient is not finite; nothing has changed.
    """
    positions = [(state.step, task) for task in range(config.meta_batch)]
    tasks = draw_tasks(
        positions, seed=config.seed, purpose="regression training", shots=config.shots, queries=config.queries
    )
    draws = leo.draw(
        positions,
        seed=config.seed,
        purpose="regression noise",
        samples=config.samples,
        inner_steps=config.inner_steps,
    )
    points, queries = _tensors(tasks)
    loss = leo.meta_loss(
        state.parameters,
        points,
        queries,
        draws,
        settings(config),
        noise_std=NOISE_STD,
        objective=config.objective,
        kl_weight=config.kl_weight,
        encoder_penalty_weight=config.encoder_penalty_weight,
    )
    values = list(state.parameters.values())
    gradients = torch.autograd.grad(loss.total, values, allow_unused=True, materialize_grads=True)
    terms = torch.stack([term.detach() for term in loss])
    if not math.isfinite(sums_of_squares([terms, *gradients]).sum().item()):
        raise Diverged(
            f"The loss or a gradient of step {state.step} is not finite (loss {loss.total.item()}). The state before "
            "it is kept. Start anew (--overwrite) with a lower --outer-lr, --inner-lr or --inner-clip."
        )
    for value, gradient in zip(
        values, clip_gradients(gradients, value=config.clip_value, norm=config.clip_norm), strict=True
    ):
        value.grad = gradient
    state.optimiser.param_groups[0]["lr"] = learning_rate(config, state.step)
    state.optimiser.step()
    state.step += 1
    state.sums += terms.double()
    return _line(config, state, points) if state.step % REPORT_EVERY == 0 else None


@torch.no_grad()
def _line(config: RegressTrainConfig, state: RegressionState, points: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Means of the terms since the last line, and what was learned beside the layers, by the tasks of the last step."""
    means = dict(zip(TERMS, (state.sums / REPORT_EVERY).tolist(), strict=True))
    state.sums.zero_()
    prior = leo.encode(state.parameters, *points)
    deviations = leo.decode(state.parameters, prior.mean).std
    return {
        "step": state.step,
        **means,
        "encoder_std": prior.std.mean().item(),
        "decoder_std": deviations.mean().item(),
        "inner_lr": state.parameters["log_inner_lr"].exp().mean().item(),
        "outer_lr": learning_rate(config, state.step - 1),
    }


def _tensors(tasks: Tasks) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    inputs, targets, query_inputs, query_targets = (torch.from_numpy(values).float() for values in tasks[2:])
    return (inputs, targets), (query_inputs, query_targets)


class Drawn(NamedTuple):
    """Functions that were drawn for a block of tasks."""

    rows: slice  # which of the tasks
    weights: Tensor  # (S, b, P), of the generated networks

    def values(self, inputs: Floats) -> Floats:
        """The functions at inputs (b, X) or (X,): (b, X, S)."""
        with torch.no_grad():
            found = leo.network(self.weights, torch.from_numpy(inputs).float())
        return found.permute(1, 2, 0).double().numpy()


def draw_functions(
    config: RegressTrainConfig, tensors: Tensors, tasks: Tasks, numbers: list[int], *, samples: int, seed: int
) -> Iterator[Drawn]:
    """Samples of functions adapted to the points of tasks, in blocks of tasks that take bounded memory.

    Each sample has its own code, adapted, and its own weights at each decode; they depend on the seed and the task's
    number alone.

    Args:
        config: that the model was trained with.
        tensors: the model.
        tasks: B of them.
        numbers: of the tasks in their stream.
        samples: S.
        seed: of the samples.
    """
    size = max(1, _BLOCK // samples)
    for start in range(0, len(numbers), size):
        rows = slice(start, min(start + size, len(numbers)))
        positions = [(number,) for number in numbers[rows]]
        draws = leo.draw(
            positions, seed=seed, purpose="regression samples", samples=samples, inner_steps=config.inner_steps
        )
        points, _ = _tensors(tasks.chosen(rows))
        yield Drawn(rows, leo.adapt(tensors, *points, draws, settings(config)).weights)


def test_tasks(numbers: list[int], *, seed: int, shots: int, queries: int) -> Tasks:
    """The tasks of these numbers that models are tested on; other ones than any is trained on."""
    return draw_tasks(
        ((number,) for number in numbers), seed=seed, purpose="regression test", shots=shots, queries=queries
    )


def find_ambiguous(
    wanted: int, *, seed: int, shots: int, least: float, most: int, on_progress: Callable[[int, int], None]
) -> list[int]:
    """The numbers of the first test tasks whose points fit both families, by the exact posterior.

    Args:
        wanted: how many.
        seed: of the test tasks.
        shots: K.
        least: the probability that the less probable family must have.
        most: tasks to look at before giving up.
        on_progress: called with the number found and wanted.

    Returns:
        Fewer than wanted where not enough were found.
    """
    numbers: list[int] = []
    for start in range(0, most, _SCANNED):
        block = list(range(start, start + _SCANNED))
        tasks = test_tasks(block, seed=seed, shots=shots, queries=0)
        for number, probability in zip(block, sine_probabilities(tasks).tolist(), strict=True):
            if least <= probability <= 1 - least and len(numbers) < wanted:
                numbers.append(number)
        on_progress(len(numbers), wanted)
        if len(numbers) == wanted:
            break
    return numbers
