"""Single steps of meta-training: their episodes and noise, gradients, clipping and Adam."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leokit.config import MetaTrainConfig
from leokit.engine.state import TERMS, State
from leokit.engine.watching import watch
from leokit.episodes import EpisodeSampler, FeatureMatrix, Rows
from leokit.errors import LeokitError
from leokit.leo import Draws, clip_gradients, decay_gradients, drop_out, sums_of_squares
from leokit.leo.learners import Tensors, make_learner

EPISODE_BLOCK = 64  # steps whose episodes are drawn at once
_WARM_UP = 3  # steps before a CUDA graph is captured


class Diverged(LeokitError):
    """A loss or gradient is not finite."""


class Inputs(NamedTuple):
    """Episodes and noise of a step."""

    support: Tensor  # (B, N, K, D)
    query: Tensor  # (B, N, Q, D)
    draws: Draws


def make_steps(config: MetaTrainConfig, features: FeatureMatrix) -> "Steps":
    """Takes the steps of a run: on CUDA without asking the host between reports, elsewhere one by one."""
    return DeviceSteps(config, features) if features.rows.device.type == "cuda" else Steps(config, features)


class Steps:
    """Takes single steps on one split.

    Attributes:
        gradients: of the last step, by parameter, before clipping.
    """

    check_every = 1  # steps after which `check` is worth asking

    def __init__(self, config: MetaTrainConfig, features: FeatureMatrix) -> None:
        self.config = config
        self.features = features
        self.learner = make_learner(config, features.dim)
        self._loss = torch.compile(self.learner.loss) if config.compile else self.learner.loss
        self.sampler = EpisodeSampler(features.offsets, ways=config.ways, seed=config.seed, purpose="meta-train")
        self.gradients: Tensors = {}
        self._rows = lru_cache(maxsize=2)(self._draw_rows)

    def take(self, state: State) -> None:
        """One step of Adam, in place; the terms of its loss go to `state.sums`.

        Raises:
            Diverged: loss or gradient is not finite, and `on_nan` is `stop`; nothing has changed.
        """
        terms, gradients = self._gradients(state, self.inputs(state.step))
        # One number is fetched, not one for each tensor.
        if not math.isfinite(sums_of_squares([terms, *gradients]).sum().item()):
            gradients = self._not_finite(state, terms[0], gradients)
        self._descend(state, gradients)
        state.sums += terms.cpu().double()
        state.step += 1

    def check(self, state: State) -> None:
        """Make `state` say where it is; `take` has done it already.

        Raises:
            Diverged: of a step since the last check, as `take`.
        """

    def inputs(self, step: int) -> Inputs:
        """What a step works on."""
        support, query = self.episodes(step)
        draws = self.learner.draws(step, range(self.config.meta_batch), support)
        return Inputs(support, query, drop_out(support, query, draws))

    def episodes(self, step: int) -> tuple[Tensor, Tensor]:
        """Support (B, N, K, D) and query (B, N, Q, D) features of a step; rows are drawn for many steps at once."""
        batch = self.config.meta_batch
        rows = self._rows(step // EPISODE_BLOCK)
        first = step % EPISODE_BLOCK * batch
        chosen = slice(first, first + batch)
        return self.features.take(rows.support[chosen]), self.features.take(rows.query[chosen])

    def _draw_rows(self, block: int) -> Rows:
        count = EPISODE_BLOCK * self.config.meta_batch
        numbers = range(block * count, (block + 1) * count)
        return self.sampler.draw(numbers, shots=self.config.shots, queries=self.config.queries)

    def _gradients(self, state: State, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """The terms of the loss, in the order of `TERMS`, and its gradients by the parameters."""
        loss = self._loss(state.parameters, *inputs)
        parameters = list(state.parameters.values())
        gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True, materialize_grads=True)
        terms = torch.stack([loss.total, loss.query_loss.mean(), loss.accuracy.mean(), *loss[3:]])
        return terms.detach(), list(gradients)

    def _descend(self, state: State, gradients: list[Tensor]) -> None:
        config = self.config
        self.gradients = dict(zip(state.parameters, gradients, strict=True))
        clipped = clip_gradients(gradients, value=config.clip_value, norm=config.clip_norm)
        for parameter, gradient in zip(state.parameters.values(), clipped, strict=True):
            parameter.grad = gradient
        state.optimiser.step()

    def _not_finite(self, state: State, loss: Tensor, gradients: list[Tensor]) -> list[Tensor]:
        """The gradients that `on_nan` asks for where loss or gradients are no numbers."""
        if self.config.on_nan == "decay":
            # As in DeepMind's code infinities do not count: clipping takes care of them.
            missing = any(value.isnan().any() for value in (loss, *gradients))
            return decay_gradients(list(state.parameters.values())) if missing else gradients
        if all(bool(value.isfinite().all()) for value in (loss, *gradients)):
            return gradients  # large enough for its square to overflow, and finite
        raise self._diverged(state.step, f" (loss {loss.item()})")

    def _diverged(self, step: int, detail: str = "") -> Diverged:
        first = step * self.config.meta_batch
        return Diverged(
            f"The loss or a gradient of step {step} (episodes {first} to {first + self.config.meta_batch - 1}) is not "
            f"finite{detail}. The state before it is kept. Start anew (--overwrite) with a lower "
            "--outer-lr or --inner-lr, or with --on-nan decay, which goes on as DeepMind's code does."
        )

    def watch(self, state: State) -> dict[str, Any]:
        """What `watching.watch` says of the step that was taken last and that `state` counts already."""
        step, config = state.step - 1, self.config
        return watch(
            self.learner,
            state.parameters,
            self.gradients,
            self.episodes(step)[0],
            step=step,
            seed=config.seed,
            clip_value=config.clip_value,
            clip_norm=config.clip_norm,
        )


class DeviceSteps(Steps):
    """Steps that stay on their device from the choice of episodes to Adam: nothing is asked for between checks.

    On CUDA a whole step is captured as one graph after a few of them, and replayed. A loss that is not finite makes
    this step and all after it leave everything as it is, which `check` finds out.
    """

    check_every = 100

    def __init__(self, config: MetaTrainConfig, features: FeatureMatrix) -> None:
        super().__init__(config, features)
        device = features.rows.device
        self.next = torch.zeros((), dtype=torch.int64, device=device)  # number of the step that comes
        self.failed = torch.zeros((), dtype=torch.float32, device=device)  # 1 from the first loss that is no number on
        self.sums = torch.zeros(len(TERMS), dtype=torch.float64, device=device)  # of steps since the last check
        self.graph: torch.cuda.CUDAGraph | None = None
        self.taken = 0
        self.state: State | None = None

    def take(self, state: State) -> None:
        """See `Steps`; what it raises, `check` raises."""
        if state is not self.state:
            self.state, self.graph, self.taken = state, None, 0
            self.next.fill_(state.step)
            state.optimiser.found_inf = self.failed  # type: ignore[attr-defined] # Adam leaves all as it is where 1
        if self.graph is None and self.taken >= _WARM_UP and self.config.cuda_graph and self.next.is_cuda:
            self.graph = self._captured(state)
        if self.graph is None:
            self._body(state)
        else:
            self.graph.replay()
        self.taken += 1
        state.step += 1

    def check(self, state: State) -> None:
        """See `Steps`."""
        state.sums += self.sums.cpu()
        self.sums.zero_()
        state.step = int(self.next)
        if self.failed.item():
            raise self._diverged(state.step)

    def _captured(self, state: State) -> torch.cuda.CUDAGraph:
        with torch.cuda.device(self.next.device):  # which need not be the first
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):  # records; nothing is computed
                self._body(state)
        return graph

    def _body(self, state: State) -> None:
        config = self.config
        numbers = self.next * config.meta_batch + torch.arange(config.meta_batch, device=self.next.device)
        rows = self.sampler.draw(numbers, shots=config.shots, queries=config.queries)
        support, query = self.features.take(rows.support), self.features.take(rows.query)
        draws = self.learner.draws(self.next, range(config.meta_batch), support)
        terms, gradients = self._gradients(state, Inputs(support, query, draws))
        if config.on_nan == "decay":
            missing = torch.stack([value.isnan().any() for value in (terms, *gradients)]).any()
            decayed = decay_gradients(list(state.parameters.values()))
            gradients = [torch.where(missing, other, own) for own, other in zip(gradients, decayed, strict=True)]
        else:
            bad = largest_magnitude([terms, *gradients]).isfinite().logical_not()
            self.failed.copy_(torch.maximum(self.failed, bad.float()))
        self._descend(state, gradients)
        good = 1 - self.failed
        self.sums += torch.where(good.bool(), terms.double(), 0.0)
        self.next += good.long()


def largest_magnitude(values: list[Tensor]) -> Tensor:
    """The largest magnitude in any of the tensors; no number where an entry is none."""
    return torch.stack(list(torch._foreach_norm(values, math.inf))).max()
