"""Single steps of meta-training: their episodes and noise, gradients, clipping and Adam.

A step may be that of several runs at once, S of them, which differ in nothing but what `leo.sets.OWN` names: along a
first dimension of parameters, episodes and draws (`state.stack`). And its episodes may be divided among the ranks of a
job, which average their gradients before clipping.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leokit.config import MetaTrainConfig
from leokit.engine.averaging import ALONE, Ranks
from leokit.engine.state import TERMS, State
from leokit.engine.watching import watch
from leokit.episodes import EpisodeSampler, FeatureMatrix, Rows, SeveralSeeds
from leokit.errors import LeokitError
from leokit.leo import Draws, clip_gradients, decay_gradients, drop_out, sums_of_squares
from leokit.leo.learners import Tensors, make_learner
from leokit.leo.sets import Sets

EPISODE_BLOCK = 64  # steps whose episodes are drawn at once
_WARM_UP = 3  # steps before a CUDA graph is captured


class Diverged(LeokitError):
    """A loss or gradient is not finite.

    Attributes:
        failures: a sentence for each run in which it happened, by its number among several at once.
    """

    def __init__(self, message: str, failures: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.failures = dict(failures or {0: message})


class Inputs(NamedTuple):
    """Episodes and noise of a step; of several runs with a first dimension S."""

    support: Tensor  # (B, N, K, D)
    query: Tensor  # (B, N, Q, D)
    draws: Draws


def make_steps(
    config: MetaTrainConfig,
    features: FeatureMatrix,
    *,
    runs: Sequence[MetaTrainConfig] | None = None,
    ranks: Ranks = ALONE,
) -> "Steps":
    """Takes the steps of a run: on CUDA without asking the host between reports, elsewhere one by one.

    Args:
        config: of the run.
        features: that it is trained on.
        runs: those of several runs at once, of one `leo.sets.structure`; `config` is then any of them.
        ranks: among which the episodes of a step are divided.
    """
    kind = DeviceSteps if features.rows.device.type == "cuda" else Steps
    return kind(config, features, runs=runs, ranks=ranks)


class Steps:
    """Takes single steps on one split.

    Attributes:
        gradients: of the last step, by parameter, before clipping.
        tasks: the episodes of each step that are this rank's.
    """

    check_every = 1  # steps after which `check` is worth asking

    def __init__(
        self,
        config: MetaTrainConfig,
        features: FeatureMatrix,
        *,
        runs: Sequence[MetaTrainConfig] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """See `make_steps`."""
        self.config, self.features, self.ranks = config, features, ranks
        self.sets = None if runs is None else Sets.of(runs, dtype=features.dtype, device=features.rows.device)
        self.learner = make_learner(config, features.dim)
        self._loss = torch.compile(self.learner.loss) if config.compile else self.learner.loss
        self.sampler = self._sampler()
        self.gradients: Tensors = {}
        self.tasks = ranks.tasks(config.meta_batch)
        self._rows = lru_cache(maxsize=2)(self._draw_rows)

    def _sampler(self) -> EpisodeSampler:
        offsets, ways = self.features.offsets, self.config.ways
        if self.sets is None or self.sets.draw_alike:
            return EpisodeSampler(offsets, ways=ways, seed=self.config.seed, purpose="meta-train")
        return SeveralSeeds(offsets, ways=ways, seeds=self.sets.seeds, purpose="meta-train")

    def take(self, state: State) -> None:
        """One step of Adam, in place; the terms of its loss go to `state.sums`.

        Raises:
            Diverged: loss or gradient is not finite, and `on_nan` is `stop`; nothing has changed.
            LeokitError: another rank has ended.
        """
        terms, gradients = self._gradients(state, self.inputs(state.step))
        # One number is fetched, not one for each tensor.
        if not math.isfinite(sums_of_squares([terms, *gradients]).sum().item()):
            gradients = self._not_finite(state, terms, gradients)
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
        support, query = self.episodes(step, self.tasks)
        draws = self.learner.draws(step, self.tasks, support, self.sets)
        return Inputs(support, query, drop_out(support, query, draws))

    def episodes(self, step: int, tasks: range | None = None) -> tuple[Tensor, Tensor]:
        """Support (B, N, K, D) and query (B, N, Q, D) features of a step; rows are drawn for many steps at once."""
        tasks = tasks or range(self.config.meta_batch)
        rows = self._rows(step // EPISODE_BLOCK)
        first = step % EPISODE_BLOCK * self.config.meta_batch
        chosen = (..., slice(first + tasks.start, first + tasks.stop), slice(None), slice(None))
        return self._images(rows.support[chosen]), self._images(rows.query[chosen])

    def _images(self, rows: Tensor) -> Tensor:
        """Features of rows, those of several runs along a first dimension; held once where they are the same."""
        images = self.features.take(rows)
        return images.expand(len(self.sets.seeds), *images.shape) if self.sets and self.sets.draw_alike else images

    def _draw_rows(self, block: int) -> Rows:
        count = EPISODE_BLOCK * self.config.meta_batch
        numbers = range(block * count, (block + 1) * count)
        return self.sampler.draw(numbers, shots=self.config.shots, queries=self.config.queries)

    def _gradients(self, state: State, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """The terms of the loss, (7,) or (S, 7) in the order of `TERMS`, and its gradients by the parameters.

        All of them are means over the episodes of all ranks.
        """
        loss = self._loss(state.parameters, *inputs, self.sets)
        parameters = list(state.parameters.values())
        gradients = torch.autograd.grad(
            loss.total, parameters, torch.ones_like(loss.total), allow_unused=True, materialize_grads=True
        )
        terms = torch.stack([loss.total, loss.query_loss.mean(-1), loss.accuracy.mean(-1), *loss[3:]], -1)
        share = len(self.tasks) / self.config.meta_batch
        terms, *found = self.ranks.weighted_sum([terms.detach(), *gradients], share)
        return terms, found

    def _descend(self, state: State, gradients: list[Tensor]) -> None:
        config, sets = self.config, 1 if self.sets else 0
        self.gradients = dict(zip(state.parameters, gradients, strict=True))
        state.descend(clip_gradients(gradients, value=config.clip_value, norm=config.clip_norm, sets=sets))

    def _not_finite(self, state: State, terms: Tensor, gradients: list[Tensor]) -> list[Tensor]:
        """The gradients that `on_nan` asks for where loss or gradients of a run are no numbers."""
        loss = terms[..., 0]
        if self.config.on_nan == "decay":
            # As in DeepMind's code infinities do not count: clipping takes care of them.
            return self._decayed(state, any_of_each([loss, *gradients], torch.isnan, loss.ndim), gradients)
        bad = any_of_each([loss, *gradients], lambda value: value.isfinite().logical_not(), loss.ndim)
        if not bad.any():
            return gradients  # large enough for its square to overflow, and finite
        raise self._diverged(state.step, bad, loss)

    def _decayed(self, state: State, missing: Tensor, gradients: list[Tensor]) -> list[Tensor]:
        """The gradients, or for the runs that are `missing` them, () or (S,), what takes their place."""
        decayed = decay_gradients(list(state.parameters.values()))
        return [
            torch.where(missing.view([*missing.shape, *[1] * (own.ndim - missing.ndim)]), other, own)
            for own, other in zip(gradients, decayed, strict=True)
        ]

    def _diverged(self, step: int, bad: Tensor, losses: Tensor | None = None) -> Diverged:
        """The error of a step; `bad`, () or (S,), says in which runs, and `losses` are theirs where they are known."""
        first, batch = step * self.config.meta_batch, self.config.meta_batch
        failures = {}
        for number in bad.reshape(-1).nonzero().flatten().tolist():
            seed = self.sets.seeds[number] if self.sets else self.config.seed
            loss = "" if losses is None else f" (loss {losses.reshape(-1)[number].item()})"
            failures[number] = (
                f"The loss or a gradient of step {step} (episodes {first} to {first + batch - 1}) of seed {seed} is "
                f"not finite{loss}."
            )
        return Diverged(
            f"{' '.join(dict.fromkeys(failures.values()))} The state before it is kept. Start anew (--overwrite) with "
            "a lower --outer-lr or --inner-lr, or with --on-nan decay, which goes on as DeepMind's code does.",
            failures,
        )

    def watch(self, state: State, run: int | None = None) -> dict[str, Any]:
        """What `watching.watch` says of the step that was taken last and that `state` counts already.

        Args:
            state: after the step.
            run: which one, of several at once.
        """
        step, config = state.step - 1, self.config
        parameters, gradients, support = state.parameters, self.gradients, self.episodes(step)[0]
        if run is not None:
            parameters = {name: value[run] for name, value in parameters.items()}
            gradients = {name: value[run] for name, value in gradients.items()}
            support = support[run]
        return watch(
            self.learner,
            parameters,
            gradients,
            support,
            step=step,
            seed=config.seed if run is None or self.sets is None else self.sets.seeds[run],
            clip_value=config.clip_value,
            clip_norm=config.clip_norm,
        )


class DeviceSteps(Steps):
    """Steps that stay on their device from the choice of episodes to Adam: nothing is asked for between checks.

    On CUDA a whole step is captured as one graph after a few of them, and replayed; not where several ranks exchange
    gradients. A loss that is not finite, in any of several runs, makes this step and all after it leave everything as
    it is, which `check` finds out.
    """

    check_every = 100

    def __init__(
        self,
        config: MetaTrainConfig,
        features: FeatureMatrix,
        *,
        runs: Sequence[MetaTrainConfig] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(config, features, runs=runs, ranks=ranks)
        device, sets = features.rows.device, () if runs is None else (len(runs),)
        self.next = torch.zeros((), dtype=torch.int64, device=device)  # number of the step that comes
        self.bad = torch.zeros(sets, dtype=torch.bool, device=device)  # whose loss was the first that is no number
        self.failed = torch.zeros((), dtype=torch.float32, device=device)  # 1 from that one on
        self.sums = torch.zeros(*sets, len(TERMS), dtype=torch.float64, device=device)  # of steps since the last check
        self.graph: torch.cuda.CUDAGraph | None = None
        self.taken = 0
        self.state: State | None = None

    def take(self, state: State) -> None:
        """See `Steps`; what it raises, `check` raises."""
        if state is not self.state:
            self.state, self.graph, self.taken = state, None, 0
            self.next.fill_(state.step)
            state.optimiser.found_inf = self.failed  # type: ignore[attr-defined] # Adam leaves all as it is where 1
        wanted = self.config.cuda_graph and self.next.is_cuda and self.ranks.size == 1
        if self.graph is None and self.taken >= _WARM_UP and wanted:
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
            raise self._diverged(state.step, self.bad)

    def _captured(self, state: State) -> torch.cuda.CUDAGraph:
        with torch.cuda.device(self.next.device):  # which need not be the first
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):  # records; nothing is computed
                self._body(state)
        return graph

    def _body(self, state: State) -> None:
        config = self.config
        tasks = torch.arange(self.tasks.start, self.tasks.stop, device=self.next.device)
        rows = self.sampler.draw(self.next * config.meta_batch + tasks, shots=config.shots, queries=config.queries)
        support, query = self._images(rows.support), self._images(rows.query)
        draws = self.learner.draws(self.next, self.tasks, support, self.sets)
        terms, gradients = self._gradients(state, Inputs(support, query, draws))
        sets = self.bad.ndim
        if config.on_nan == "decay":
            gradients = self._decayed(state, any_of_each([terms, *gradients], torch.isnan, sets), gradients)
        else:
            bad = largest_magnitude([terms, *gradients], sets).isfinite().logical_not()
            self.bad.copy_(torch.where(self.failed.bool(), self.bad, bad))
            self.failed.copy_(torch.maximum(self.failed, bad.any().float()))
        self._descend(state, gradients)
        good = 1 - self.failed
        self.sums += torch.where(good.bool(), terms.double(), 0.0)
        self.next += good.long()


def any_of_each(values: Sequence[Tensor], test: Callable[[Tensor], Tensor], sets: int) -> Tensor:
    """Whether any entry of the tensors passes a test: (), or with `sets` = 1 for each of the first dimension, (S,)."""
    if sets:
        return torch.stack([test(value).reshape(len(value), -1).any(1) for value in values]).any(0)
    return torch.stack([test(value).any() for value in values]).any()


def largest_magnitude(values: list[Tensor], sets: int) -> Tensor:
    """The largest magnitude in any of the tensors; no number where an entry is none. `sets` as for `any_of_each`."""
    if sets:
        flat = torch.cat([value.reshape(len(value), -1) for value in values], 1)
        largest: Tensor = torch.linalg.vector_norm(flat, math.inf, 1)
        return largest
    return torch.stack(list(torch._foreach_norm(values, math.inf))).max()
