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
from leokit.leo import Anchor, Penalties, clip_gradients, decay_gradients
from leokit.leo.learners import Learner, Settings, Tensors, make_learner
from leokit.metrics import mean_interval

REPORT_EVERY = 100  # steps between lines of training metrics
EPISODE_BLOCK = 64  # steps whose episodes are drawn at once
TERMS = ("loss", "query_loss", "accuracy", "kl", "encoder_penalty", "l2", "orthogonality")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class State:
    """Everything that the next step depends on, beside the configuration and the data."""

    parameters: Tensors
    optimiser: torch.optim.Adam
    best: Tensors
    step: int = 0
    best_step: int = 0
    best_accuracy: float = -1.0
    best_half_width: float = 0.0
    best_is_fallback: bool = False  # a plain method, no step of training, was the best
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(TERMS), dtype=torch.float64))  # since the last report


class Diverged(LeokitError):
    """A loss or gradient is not finite."""


def learner_of(config: MetaTrainConfig, dim: int) -> Learner:
    """The learner of a run's configuration, for features of width `dim`."""
    penalties = Penalties(
        kl=config.kl_weight,
        encoder=config.encoder_penalty_weight,
        l2=config.l2_weight,
        orthogonality=config.orthogonality_weight,
    )
    settings = Settings(
        ways=config.ways,
        shots=config.shots,
        queries=config.queries,
        dim=dim,
        num_latents=config.num_latents,
        inner_steps=config.inner_steps,
        finetuning_steps=config.finetuning_steps,
        inner_lr=config.inner_lr,
        finetuning_lr=config.finetuning_lr,
        dropout=config.dropout,
        penalties=penalties,
        seed=config.seed,
        anchor_scale=config.anchor_scale,
        anchor_gate=config.anchor_gate,
    )
    return make_learner(config.variant, settings)


def new_state(config: MetaTrainConfig, dim: int, device: torch.device) -> State:
    """The state before the first step."""
    tensors = learner_of(config, dim).initial(getattr(torch, config.dtype))
    return _assemble(config, tensors, tensors, device)


def _assemble(config: MetaTrainConfig, parameters: Tensors, best: Tensors, device: torch.device) -> State:
    moved = {name: value.detach().to(device, copy=True).requires_grad_() for name, value in parameters.items()}
    kept = {name: value.detach().to(device, copy=True) for name, value in best.items()}
    anchor = [value for name, value in moved.items() if name in Anchor._fields]
    others = [value for name, value in moved.items() if name not in Anchor._fields]
    groups: list[dict[str, Any]] = [{"params": others}]
    if anchor:
        groups.append({"params": anchor, "lr": config.outer_lr * config.anchor_lr_factor})
    return State(moved, torch.optim.Adam(groups, lr=config.outer_lr, fused=device.type != "mps"), kept)


def pack(state: State) -> tuple[Tensors, dict[str, Any]]:
    """A state as tensors and plain data, for `runs.save_state`."""
    tensors = {f"parameters/{name}": value for name, value in state.parameters.items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    for name, value in state.parameters.items():
        for moment in _MOMENTS:
            entry = state.optimiser.state.get(value)
            tensors[f"{moment}/{name}"] = entry[moment] if entry else torch.zeros_like(value)
    record = {
        "step": state.step,
        "best_step": state.best_step,
        "best_accuracy": state.best_accuracy,
        "best_half_width": state.best_half_width,
        "best_is_fallback": state.best_is_fallback,
        "sums": state.sums.tolist(),
    }
    return tensors, record


def unpack(tensors: Tensors, record: dict[str, Any], config: MetaTrainConfig, device: torch.device) -> State:
    """The state that `pack` packed."""
    groups: dict[str, Tensors] = {}
    for path, value in tensors.items():
        group, _, name = path.partition("/")
        groups.setdefault(group, {})[name] = value
    state = _assemble(config, groups["parameters"], groups["best"], device)
    for name, value in state.parameters.items():
        state.optimiser.state[value] = {
            "step": torch.tensor(float(record["step"]), device=device),
            **{moment: groups[moment][name].to(device) for moment in _MOMENTS},
        }
    state.step = record["step"]
    state.best_step = record["best_step"]
    state.best_accuracy = record["best_accuracy"]
    state.best_half_width = record["best_half_width"]
    state.best_is_fallback = record["best_is_fallback"]
    state.sums = torch.tensor(record["sums"], dtype=torch.float64)
    return state


def classifier(learner: Learner, tensors: Tensors) -> Classifier:
    """A learner with its parameters as a method for `score`."""

    def classify(support: Tensor, numbers: range) -> Tensor:
        return learner.weights(tensors, support, numbers)

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
    steps = Steps(config, training)
    if state.step == 0:
        _validate(config, state, validation, report)
        keep(state)
    while state.step < config.steps:
        try:
            state.sums += steps.take(state)
        except Diverged:
            keep(state)
            raise
        state.step += 1
        text = _loss_text(state)
        if state.step % REPORT_EVERY == 0:
            means = dict(zip(TERMS, (state.sums / REPORT_EVERY).tolist(), strict=True))
            report({"step": state.step, **means})
            state.sums.zero_()
        if state.step % config.val_every == 0:
            _validate(config, state, validation, report)
            keep(state)
        on_step(state.step, f"{text} val {state.best_accuracy:.1%} at {state.best_step}")
        if stop_requested() and state.step < config.steps:
            keep(state)
            return False
    if state.step % config.val_every:
        # One more candidate than a longer run would have here: the state that it would go on from is kept before.
        keep(state)
        _validate(config, state, validation, report)
    return True


def _loss_text(state: State) -> str:
    """Loss and accuracy of the steps since the last report, in few letters."""
    count = (state.step - 1) % REPORT_EVERY + 1
    means = dict(zip(TERMS, (state.sums / count).tolist(), strict=True))
    return f"loss {means['loss']:.2f} acc {means['accuracy']:.0%}"


class Steps:
    """Takes single steps on one split."""

    def __init__(self, config: MetaTrainConfig, features: FeatureMatrix) -> None:
        self.config = config
        self.features = features
        self.learner = learner_of(config, features.dim)
        self.sampler = EpisodeSampler(features.offsets, ways=config.ways, seed=config.seed, purpose="meta-train")
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
        config, parameters = self.config, list(state.parameters.values())
        support, query = self._episodes(state.step)
        draws = self.learner.draws(state.step, range(config.meta_batch), support)
        loss = self.learner.loss(state.parameters, support, query, draws)
        gradients: list[Tensor] = list(
            torch.autograd.grad(loss.total, parameters, allow_unused=True, materialize_grads=True)
        )
        gradients = self._checked(state.step, loss.total, gradients, parameters)
        clipped = clip_gradients(gradients, value=config.clip_value, norm=config.clip_norm)
        for parameter, gradient in zip(parameters, clipped, strict=True):
            parameter.grad = gradient
        state.optimiser.step()
        terms = (loss.total, loss.query_loss.mean(), loss.accuracy.mean(), *loss[3:])
        return torch.stack([term.detach() for term in terms]).cpu().double()

    def _checked(self, step: int, loss: Tensor, gradients: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """The gradients, or what `on_nan` asks for where loss or gradients are no numbers."""
        # A sum is finite only where every entry is; one number is fetched from the device, not one for each tensor.
        if math.isfinite(torch.stack([value.detach().double().sum() for value in (loss, *gradients)]).sum().item()):
            return gradients
        if self.config.on_nan == "decay":
            # As in DeepMind's code infinities do not count: clipping takes care of them.
            missing = any(value.isnan().any() for value in (loss, *gradients))
            return decay_gradients(parameters) if missing else gradients
        first = step * self.config.meta_batch
        raise Diverged(
            f"The loss or a gradient of step {step} (episodes {first} to {first + self.config.meta_batch - 1}) is not "
            f"finite (loss {loss.item()}). The state before it is kept. Start anew (--overwrite) with a lower "
            "--outer-lr or --inner-lr, or with --on-nan decay, which goes on as DeepMind's code does."
        )


def _validate(
    config: MetaTrainConfig, state: State, features: FeatureMatrix, report: Callable[[dict[str, Any]], None]
) -> None:
    """Measure accuracy on the fixed meta-val episodes and keep the parameters if they are the best so far."""
    learner = learner_of(config, features.dim)
    candidates = {"val": state.parameters}
    fallback = learner.fallback(state.parameters) if state.step == 0 else None
    if fallback is not None:
        candidates = {"fallback": fallback, **candidates}
    # The seed of these episodes is not that of the run: all runs are selected on the same episodes.
    scores = score(
        features,
        EpisodeSampler(features.offsets, ways=config.ways, seed=0, purpose="selection"),
        {name: classifier(learner, tensors) for name, tensors in candidates.items()},
        shots=config.shots,
        queries=config.val_queries,
        episodes=config.val_episodes,
    )
    line: dict[str, Any] = {"step": state.step}
    for name, accuracies in scores.items():
        accuracy, half_width = mean_interval(accuracies)
        line |= {f"{name}_accuracy": accuracy, f"{name}_half_width": half_width}
        if accuracy > state.best_accuracy:
            state.best_step, state.best_accuracy, state.best_half_width = state.step, accuracy, half_width
            state.best_is_fallback = name == "fallback"
            state.best = {key: value.detach().clone() for key, value in candidates[name].items()}
    report(line)
