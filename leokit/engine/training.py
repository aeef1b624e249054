"""Meta-train a model: the outer loop of Algorithm 1, with validation, resuming and early stopping by best weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from leokit.config import MetaTrainConfig
from leokit.engine.scoring import Classifier, score
from leokit.episodes import EpisodeSampler, FeatureMatrix
from leokit.errors import LeokitError
from leokit.leo import Parameters, Penalties, adapt, clip_gradients, decay_gradients, initial_parameters, meta_loss
from leokit.leo.draws import DrawShapes, meta_training_draws
from leokit.metrics import mean_interval

REPORT_EVERY = 100  # steps between lines of training metrics
EPISODE_BLOCK = 64  # steps whose episodes are drawn at once
TERMS = ("loss", "query_loss", "accuracy", "kl", "encoder_penalty", "l2", "orthogonality")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class State:
    """Everything that the next step depends on, beside the configuration and the data."""

    parameters: Parameters
    optimiser: torch.optim.Adam
    best: Parameters
    step: int = 0
    best_step: int = 0
    best_accuracy: float = -1.0
    best_half_width: float = 0.0
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(TERMS), dtype=torch.float64))  # since the last report


class Diverged(LeokitError):
    """A loss or gradient is not finite."""


def new_state(config: MetaTrainConfig, dim: int, device: torch.device) -> State:
    """The state before the first step."""
    parameters = initial_parameters(
        dim,
        config.num_latents,
        inner_lr=config.inner_lr,
        finetuning_lr=config.finetuning_lr,
        seed=config.seed,
        dtype=getattr(torch, config.dtype),
    )
    return _assemble(config, parameters, parameters, device)


def _assemble(config: MetaTrainConfig, parameters: Parameters, best: Parameters, device: torch.device) -> State:
    moved = Parameters(*(value.detach().to(device, copy=True).requires_grad_() for value in parameters))
    kept = Parameters(*(value.detach().to(device, copy=True) for value in best))
    return State(moved, torch.optim.Adam(list(moved), lr=config.outer_lr, fused=device.type != "mps"), kept)


def pack(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state as tensors and plain data, for `runs.save_state`."""
    tensors = {f"parameters/{name}": value for name, value in state.parameters._asdict().items()}
    tensors |= {f"best/{name}": value for name, value in state.best._asdict().items()}
    for name, value in state.parameters._asdict().items():
        for moment in _MOMENTS:
            entry = state.optimiser.state.get(value)
            tensors[f"{moment}/{name}"] = entry[moment] if entry else torch.zeros_like(value)
    record = {
        "step": state.step,
        "best_step": state.best_step,
        "best_accuracy": state.best_accuracy,
        "best_half_width": state.best_half_width,
        "sums": state.sums.tolist(),
    }
    return tensors, record


def unpack(tensors: dict[str, Tensor], record: dict[str, Any], config: MetaTrainConfig, device: torch.device) -> State:
    """The state that `pack` packed."""

    def group(prefix: str) -> Parameters:
        return Parameters(**{name: tensors[f"{prefix}/{name}"] for name in Parameters._fields})

    state = _assemble(config, group("parameters"), group("best"), device)
    for value, *moments in zip(state.parameters, *map(group, _MOMENTS), strict=True):
        state.optimiser.state[value] = {
            "step": torch.tensor(float(record["step"]), device=device),
            **{name: moment.to(device) for name, moment in zip(_MOMENTS, moments, strict=True)},
        }
    state.step = record["step"]
    state.best_step = record["best_step"]
    state.best_accuracy = record["best_accuracy"]
    state.best_half_width = record["best_half_width"]
    state.sums = torch.tensor(record["sums"], dtype=torch.float64)
    return state


def leo_classifier(parameters: Parameters, config: MetaTrainConfig) -> Classifier:
    """LEO as a method for `score`: from support images to classifier weights, by means alone."""

    def classify(support: Tensor) -> Tensor:
        inner, finetuning = config.inner_steps, config.finetuning_steps
        return adapt(parameters, support, inner_steps=inner, finetuning_steps=finetuning).weights

    return classify


def train(
    config: MetaTrainConfig,
    state: State,
    training: FeatureMatrix,
    validation: FeatureMatrix,
    *,
    keep: Callable[[State], None],
    report: Callable[[dict[str, Any]], None],
    on_step: Callable[[int, str], None] = lambda step, text: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """Take the steps from `state.step` to `config.steps`, in place.

    Args:
        config: of the run.
        state: where to go on from.
        training: features of the meta-train classes.
        validation: features of the meta-val classes.
        keep: saves a state; called after each validation and before stopping early.
        report: takes a line of metrics.
        on_step: called with the number of steps taken and a line on how it goes.
        stop_requested: asked after each step.

    Returns:
        Whether all steps were taken; False where a stop was requested.

    Raises:
        Diverged: a loss or gradient is not finite and `config.on_nan` is `stop`; the state before it was kept.
    """
    steps = _Steps(config, training)
    if state.step == 0:
        _validate(config, state, validation, report)
        keep(state)
    text = ""
    while state.step < config.steps:
        try:
            state.sums += steps.take(state)
        except Diverged:
            keep(state)
            raise
        state.step += 1
        if state.step % REPORT_EVERY == 0:
            means = dict(zip(TERMS, (state.sums / REPORT_EVERY).tolist(), strict=True))
            report({"step": state.step, **means})
            state.sums.zero_()
            text = f"loss {means['loss']:.3f}  accuracy {means['accuracy']:.1%}"
        if state.step % config.val_every == 0:
            _validate(config, state, validation, report)
            keep(state)
        on_step(state.step, f"{text}  best val {state.best_accuracy:.2%} at {state.best_step}")
        if stop_requested() and state.step < config.steps:
            keep(state)
            return False
    if state.step % config.val_every:
        # One more candidate than a longer run would have here: the state that it would go on from is kept before.
        keep(state)
        _validate(config, state, validation, report)
    return True


class _Steps:
    """Takes single steps on one split."""

    def __init__(self, config: MetaTrainConfig, features: FeatureMatrix) -> None:
        self.config = config
        self.features = features
        self.sampler = EpisodeSampler(features.offsets, ways=config.ways, seed=config.seed, purpose="meta-train")
        self.penalties = Penalties(
            config.kl_weight, config.encoder_penalty_weight, config.l2_weight, config.orthogonality_weight
        )
        self.shapes = DrawShapes(
            config.ways,
            config.shots,
            config.queries,
            features.dim,
            config.num_latents,
            config.inner_steps,
            config.finetuning_steps,
        )
        self.drawn = range(0)

    def _episodes(self, step: int) -> tuple[Tensor, Tensor]:
        """Support (B, N, K, D) and query (B, N, Q, D) features of a step; rows are drawn for many steps at once."""
        batch, config = self.config.meta_batch, self.config
        if step not in self.drawn:
            self.drawn = range(step, step + EPISODE_BLOCK)
            numbers = range(step * batch, (step + EPISODE_BLOCK) * batch)
            self.rows = self.sampler.draw(numbers, shots=config.shots, queries=config.queries)
        first = (step - self.drawn.start) * batch
        chosen = slice(first, first + batch)
        return self.features.rows[self.rows.support[chosen]], self.features.rows[self.rows.query[chosen]]

    def take(self, state: State) -> Tensor:
        """One step of Adam, in place; the terms of the loss, in the order of `TERMS`."""
        config, parameters = self.config, state.parameters
        support, query = self._episodes(state.step)
        draws = meta_training_draws(
            self.shapes,
            seed=config.seed,
            step=state.step,
            tasks=range(config.meta_batch),
            dropout=config.dropout,
            dtype=support.dtype,
            device=support.device,
        )
        loss = meta_loss(
            parameters,
            support,
            query,
            self.penalties,
            inner_steps=config.inner_steps,
            finetuning_steps=config.finetuning_steps,
            draws=draws,
        )
        gradients: list[Tensor] = list(torch.autograd.grad(loss.total, parameters))
        gradients = self._checked(state.step, loss.total, gradients, parameters)
        clipped = clip_gradients(gradients, value=config.clip_value, norm=config.clip_norm)
        for parameter, gradient in zip(parameters, clipped, strict=True):
            parameter.grad = gradient
        state.optimiser.step()
        terms = (loss.total, loss.query_loss.mean(), loss.accuracy.mean(), *loss[3:])
        return torch.stack([term.detach().double() for term in terms]).cpu()

    def _checked(self, step: int, loss: Tensor, gradients: list[Tensor], parameters: Parameters) -> list[Tensor]:
        """The gradients, or what `on_nan` asks for where loss or gradients are no numbers."""
        total = math.fsum(value.sum().item() for value in (loss, *gradients))
        if math.isfinite(total):
            return gradients
        if self.config.on_nan == "decay":
            # As in DeepMind's code infinities do not count: clipping takes care of them.
            missing = any(value.isnan().any() for value in (loss, *gradients))
            return decay_gradients(parameters) if missing else gradients
        first = step * self.config.meta_batch
        raise Diverged(
            f"The loss or a gradient of step {step} (episodes {first} to {first + self.config.meta_batch - 1}) is not "
            f"finite (loss {loss.item()}). The state before it is kept. Lower --outer-lr or --inner-lr, or use "
            "--on-nan decay to go on as DeepMind's code does."
        )


def _validate(
    config: MetaTrainConfig, state: State, features: FeatureMatrix, report: Callable[[dict[str, Any]], None]
) -> None:
    """Measure accuracy on the fixed meta-val episodes and keep the parameters if they are the best so far."""
    # The seed of these episodes is not that of the run: all runs are selected on the same episodes.
    sampler = EpisodeSampler(features.offsets, ways=config.ways, seed=0, purpose="selection")
    accuracies = score(
        features,
        sampler,
        {"leo": leo_classifier(state.parameters, config)},
        shots=config.shots,
        queries=config.val_queries,
        episodes=config.val_episodes,
    )["leo"]
    accuracy, half_width = mean_interval(accuracies)
    if accuracy > state.best_accuracy:
        state.best_step, state.best_accuracy, state.best_half_width = state.step, accuracy, half_width
        for kept, current in zip(state.best, state.parameters, strict=True):
            kept.copy_(current.detach())
    report({"step": state.step, "val_accuracy": accuracy, "val_half_width": half_width})
