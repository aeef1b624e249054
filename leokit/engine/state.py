"""The state of meta-training: everything that the next step depends on, and how it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from leokit.config import MetaTrainConfig
from leokit.leo import Anchor
from leokit.leo.learners import Tensors, make_learner

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
    best_is_centred: bool = True  # on centred features, where the run centres them
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(TERMS), dtype=torch.float64))  # since the last report

    def descend(self, gradients: Sequence[Tensor]) -> None:
        """A step of Adam by the gradients of the parameters, in their order; it is not counted."""
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimiser.step()


@dataclass
class Stacked(State):
    """States of several runs as one: see `stack`."""

    members: Sequence[Tensors] = ()  # the parameters of each, views of those of all, which Adam steps by its own rates

    def descend(self, gradients: Sequence[Tensor]) -> None:
        """See `State`."""
        for name, gradient in zip(self.parameters, gradients, strict=True):
            for own, part in zip(self.members, gradient, strict=True):
                own[name].grad = part.contiguous()
        self.optimiser.step()


def new_state(config: MetaTrainConfig, dim: int, device: torch.device) -> State:
    """The state before the first step."""
    tensors = make_learner(config, dim).initial(getattr(torch, config.dtype))
    return _assemble(config, tensors, tensors, device)


def _assemble(config: MetaTrainConfig, parameters: Tensors, best: Tensors, device: torch.device) -> State:
    # In one order, whichever a file has, so that a resumed run reports the same lines.
    ordered = sorted(parameters.items())
    moved = {name: value.detach().to(device, copy=True).requires_grad_() for name, value in ordered}
    kept = {name: value.detach().to(device, copy=True) for name, value in best.items()}
    return State(moved, _adam([config], [moved], device), kept)


def _adam(configs: Sequence[MetaTrainConfig], parameters: Sequence[Tensors], device: torch.device) -> torch.optim.Adam:
    """Adam for the parameters of runs, each by its own learning rates; those of one rate in one group."""
    by_rate: dict[float, list[Tensor]] = {}
    for config, own in zip(configs, parameters, strict=True):
        for name, value in own.items():
            factor = config.anchor_lr_factor if name in Anchor._fields else 1
            by_rate.setdefault(config.outer_lr * factor, []).append(value)
    groups: list[dict[str, Any]] = [{"params": values, "lr": rate} for rate, values in by_rate.items()]
    return torch.optim.Adam(groups, fused=device.type != "mps", capturable=device.type == "cuda")


def stack(configs: Sequence[MetaTrainConfig], states: Sequence[State]) -> State:
    """States of runs at one step, which differ in nothing but `leo.sets.OWN`, as one state of all of them.

    Its parameters, moments and sums have a first dimension of runs. The given states become views of it, so that they
    are where it is but for `step`, until `unstack`. What the runs were best at stays theirs.
    """
    device = next(iter(states[0].parameters.values())).device
    packed = [by_group(pack_moments(state.parameters, state.optimiser)) for state in states]
    stacked = {
        moment: {name: torch.stack([groups[moment][name] for groups in packed]) for name in states[0].parameters}
        for moment in _MOMENTS
    }
    parameters = {
        name: torch.stack([state.parameters[name].detach() for state in states]).requires_grad_()
        for name in states[0].parameters
    }
    members = [
        {name: value.detach()[number].requires_grad_() for name, value in parameters.items()}
        for number in range(len(states))
    ]
    whole = Stacked(parameters, _adam(configs, members, device), {}, members=members)
    whole.step, whole.sums = states[0].step, torch.stack([state.sums for state in states])
    for number, (config, state, own) in enumerate(zip(configs, states, members, strict=True)):
        moments = {moment: {name: value[number] for name, value in each.items()} for moment, each in stacked.items()}
        restore_moments(own, whole.optimiser, moments, whole.step)
        _become(state, config, own, moments)
        state.sums = whole.sums[number]
    return whole


def unstack(configs: Sequence[MetaTrainConfig], states: Sequence[State]) -> None:
    """Give states that `stack` made views of another one tensors of their own, at the step that they say."""
    for config, state in zip(configs, states, strict=True):
        packed = by_group(pack_moments(state.parameters, state.optimiser))
        moments = {moment: {name: value.clone() for name, value in packed[moment].items()} for moment in _MOMENTS}
        own = {name: value.detach().clone().requires_grad_() for name, value in state.parameters.items()}
        _become(state, config, own, moments)
        state.sums = state.sums.clone()


def _become(state: State, config: MetaTrainConfig, parameters: Tensors, moments: dict[str, Tensors]) -> None:
    """Give a state other parameters and moments."""
    state.parameters = parameters
    state.optimiser = _adam([config], [parameters], next(iter(parameters.values())).device)
    restore_moments(parameters, state.optimiser, moments, state.step)


def pack(state: State) -> tuple[Tensors, dict[str, Any]]:
    """A state as tensors and plain data, for `runs.save_state`."""
    tensors = {f"parameters/{name}": value for name, value in state.parameters.items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    tensors |= pack_moments(state.parameters, state.optimiser)
    record = {
        "step": state.step,
        "best_step": state.best_step,
        "best_accuracy": state.best_accuracy,
        "best_half_width": state.best_half_width,
        "best_is_fallback": state.best_is_fallback,
        "best_is_centred": state.best_is_centred,
        "sums": state.sums.tolist(),
    }
    return tensors, record


def unpack(tensors: Tensors, record: dict[str, Any], config: MetaTrainConfig, device: torch.device) -> State:
    """The state that `pack` packed."""
    groups = by_group(tensors)
    state = _assemble(config, groups["parameters"], groups["best"], device)
    restore_moments(state.parameters, state.optimiser, groups, record["step"])
    state.step = record["step"]
    state.best_step = record["best_step"]
    state.best_accuracy = record["best_accuracy"]
    state.best_half_width = record["best_half_width"]
    state.best_is_fallback = record["best_is_fallback"]
    state.best_is_centred = record["best_is_centred"]
    state.sums = torch.tensor(record["sums"], dtype=torch.float64)
    return state


def pack_moments(parameters: Tensors, optimiser: torch.optim.Adam) -> Tensors:
    """Adam's two moments of each parameter, as `exp_avg/NAME` and `exp_avg_sq/NAME`; 0 before its first step."""
    tensors = {}
    for name, value in parameters.items():
        entry = optimiser.state.get(value)
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = entry[moment] if entry else torch.zeros_like(value)
    return tensors


def by_group(tensors: Tensors) -> dict[str, Tensors]:
    """Tensors named `GROUP/NAME`, by group and name."""
    groups: dict[str, Tensors] = {}
    for path, value in tensors.items():
        group, _, name = path.partition("/")
        groups.setdefault(group, {})[name] = value
    return groups


def restore_moments(parameters: Tensors, optimiser: torch.optim.Adam, groups: dict[str, Tensors], step: int) -> None:
    """Give Adam the moments, by group and name, that it had after a number of steps."""
    for name, value in parameters.items():
        optimiser.state[value] = {
            "step": torch.tensor(float(step), device=value.device),
            **{moment: groups[moment][name].to(value.device) for moment in _MOMENTS},
        }
