"""The variants of Table 2 and leokit's own, as values: what is learned, the meta-objective, and the classifier.

| variant | what it changes in Algorithm 1 |
|---|---|
| `leo` | nothing |
| `no-finetuning` | no steps in weight space |
| `deterministic` | codes and weights are means, also in meta-training; no KL, no encoder penalty |
| `random-prior` | codes are standard normal draws that ignore the support set, at evaluation too |
| `generator` | no steps at all: encode and decode |
| `generator-finetuning` | no steps in latent space |
| `meta-sgd` | no codes: a learned N × D start and learned rates in weight space |
| `anchored` | the classifier is τ · class means + gate · decoded weights, through both loops |

The first seven are the paper's; `anchored` is ours.
"""

from dataclasses import dataclass, replace
from math import log
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from leokit import randomness
from leokit.config import MetaTrainConfig, has_posterior
from leokit.errors import UsageError
from leokit.leo.adaptation import Adapted, Draws, Method, adapt, for_episodes, masked, predict, support_steps
from leokit.leo.draws import DrawShapes, meta_training_draws, posterior_draws
from leokit.leo.loops import WeightLoop
from leokit.leo.objective import MetaLoss, mean_of_each, meta_loss, score
from leokit.leo.parameters import Anchor, Parameters, initial_parameters
from leokit.leo.sets import Sets, penalties

Tensors = dict[str, Tensor]


class Path(NamedTuple):
    """The way from where adapting starts to the classifier, with every point between two steps.

    The latent loop comes first: weights at place t are decoded from the codes at place t, up to the last codes, and
    fine-tuning goes on from there.
    """

    codes: Tensor | None  # (B, T+1, N, Z): z, after each latent step, z'; None for a method without codes
    weights: Tensor  # (B, T+F+1, N, D)

    @property
    def latent_steps(self) -> int:
        """T, 0 for a method without codes."""
        return 0 if self.codes is None else self.codes.shape[1] - 1


class Learner(Protocol):
    """A variant at work: it holds no tensors, so that one learner serves any number of parameter sets.

    `draws` and `loss` serve several sets at once too, whose own values are given as `Sets` and rank before those of the
    learner's configuration: along a first dimension S of each tensor, of support, query and draws, and of every scalar
    of the loss.
    """

    @property
    def has_posterior(self) -> bool:
        """Whether it was trained with samples of codes and weights, so that `posterior` can draw some."""
        ...

    def initial(self, dtype: torch.dtype) -> Tensors:
        """The parameters before training, by name."""
        ...

    def draws(self, step: int | Tensor, tasks: range, like: Tensor, sets: Sets | None = None) -> Draws:
        """Everything random that the tasks of a step consume, of the dtype and device of `like`.

        The step is a number on the CPU, a () int64 tensor on any other device.
        """
        ...

    def loss(
        self, tensors: Tensors, support: Tensor, query: Tensor, draws: Draws, sets: Sets | None = None
    ) -> MetaLoss:
        """The meta-objective of support (B, N, K, D) and query (B, N, Q, D)."""
        ...

    def weights(self, tensors: Tensors, support: Tensor, numbers: range, shares: Tensor | None = None) -> Tensor:
        """The classifiers (B, N, D) of evaluation, from support (B, N, K, D) of the episodes of these numbers.

        Where classes have different numbers of images, shares are (B, N, K) as `adapt` takes them.
        """
        ...

    def path(self, tensors: Tensors, support: Tensor, numbers: range) -> Path:
        """How evaluation gets to its classifiers, the last weights of the path; arguments as of `weights`."""
        ...

    def code_map(self, tensors: Tensors) -> Tensor | None:
        """The linear map (Z, D) by which a step of a class's code moves its weights; None where there are no codes."""
        ...

    def posterior(
        self, tensors: Tensors, support: Tensor, numbers: range, samples: int, shares: Tensor | None = None
    ) -> Tensor:
        """Classifiers (S, B, N, D) from samples of codes and weights, each adapted; arguments as of `weights`."""
        ...

    def fallback(self, tensors: Tensors) -> Tensors | None:
        """Parameters that give a plain method without learning, a candidate of selection; None where there are none."""
        ...


@dataclass(frozen=True)
class LatentLearner:
    """Every variant with codes: a method, and an anchor or none."""

    config: MetaTrainConfig
    dim: int
    method: Method
    anchored: bool = False

    @property
    def has_posterior(self) -> bool:
        """See `Learner`."""
        return has_posterior(self.config)

    def initial(self, dtype: torch.dtype) -> Tensors:
        """See `Learner`."""
        config = self.config
        parameters = initial_parameters(
            self.dim,
            config.num_latents,
            inner_lr=config.inner_lr,
            finetuning_lr=config.finetuning_lr,
            seed=config.seed,
            dtype=dtype,
        )
        tensors = {name: value.detach() for name, value in parameters._asdict().items()}
        if self.anchored:
            tensors["log_scale"] = torch.tensor(log(config.anchor_scale), dtype=dtype)
            tensors["gate"] = torch.tensor(config.anchor_gate, dtype=dtype)
        return tensors

    def draws(self, step: int | Tensor, tasks: range, like: Tensor, sets: Sets | None = None) -> Draws:
        """See `Learner`."""
        return _draws(self.config, self.dim, self.method, step, tasks, like, sets)

    def loss(
        self, tensors: Tensors, support: Tensor, query: Tensor, draws: Draws, sets: Sets | None = None
    ) -> MetaLoss:
        """See `Learner`."""
        parameters, anchor = split_anchor(tensors)
        weights = sets.penalties if sets else penalties(self.config)
        return meta_loss(parameters, support, query, weights, self.method, draws, anchor)

    def weights(self, tensors: Tensors, support: Tensor, numbers: range, shares: Tensor | None = None) -> Tensor:
        """See `Learner`."""
        return self._adapt(tensors, support, numbers, self.method, shares).weights

    def path(self, tensors: Tensors, support: Tensor, numbers: range) -> Path:
        """See `Learner`: a point is what adapting with as many steps as lead to it gives."""
        latent, tuned = self.method.inner_steps, self.method.finetuning_steps
        counts = [(step, 0) for step in range(latent + 1)] + [(latent, step + 1) for step in range(tuned)]
        methods = [replace(self.method, inner_steps=inner, finetuning_steps=outer) for inner, outer in counts]
        points = [self._adapt(tensors, support, numbers, method) for method in methods]
        codes = [point.adapted_codes.squeeze(-2) for point in points[: latent + 1]]
        return Path(torch.stack(codes, 1), torch.stack([point.weights for point in points], 1))

    def code_map(self, tensors: Tensors) -> Tensor | None:
        """See `Learner`: the mean half of the decoder, times the gate where there is one."""
        parameters, anchor = split_anchor(tensors)
        means = parameters.decoder.chunk(2, dim=1)[0]
        return means if anchor is None else anchor.gate * means

    def _adapt(
        self, tensors: Tensors, support: Tensor, numbers: range, method: Method, shares: Tensor | None = None
    ) -> Adapted:
        """Adapt as evaluation does, by means of codes and weights."""
        parameters, anchor = split_anchor(tensors)
        draws = None if method.encoded else Draws(codes=self._prior_codes(support, numbers))
        return adapt(parameters, support, method, draws, anchor, shares)

    def posterior(
        self, tensors: Tensors, support: Tensor, numbers: range, samples: int, shares: Tensor | None = None
    ) -> Tensor:
        """See `Learner`.

        Raises:
            UsageError: a variant that was not trained with samples.
        """
        if not self.has_posterior:
            raise UsageError(f"{self.config.variant}: it was trained without samples, so it has none to draw.")
        parameters, anchor = split_anchor(tensors)
        shapes = _shapes(self.config, self.dim, self.method, ways=support.shape[-3])
        draws = posterior_draws(shapes, seed=self.config.seed, episodes=numbers, samples=samples, like=support)
        return adapt(parameters, support, self.method, draws, anchor, shares).weights

    def _prior_codes(self, support: Tensor, numbers: range) -> Tensor:
        """Codes (B, N, 1, Z) drawn by (seed, number of the episode)."""
        ways, latents = support.shape[-3], self.config.num_latents
        count = -(-ways * latents // 4) * 2  # words of 64 bits, a whole number of pairs
        normals = np.empty((len(numbers), 2 * count), np.float32)
        for row, number in enumerate(numbers):
            bits = randomness.words(count, self.config.seed, "prior", number)
            randomness.normals(bits.view(np.int32), normals[row])
        return torch.from_numpy(normals[:, : ways * latents]).view(-1, ways, 1, latents).to(support)

    def fallback(self, tensors: Tensors) -> Tensors | None:
        """See `Learner`: for the anchored variant the class means, a gate of 0 and steps of 0."""
        if not self.anchored:
            return None
        still = {name: torch.zeros_like(tensors[name]) for name in ("gate", "finetuning_lr")}
        return {name: still.get(name, value) for name, value in tensors.items()}


def split_anchor(tensors: Tensors) -> tuple[Parameters, Anchor | None]:
    """The parameters of LEO and, where there is one, the anchor."""
    parameters = Parameters(**{name: tensors[name] for name in Parameters._fields})
    if "gate" not in tensors:
        return parameters, None
    return parameters, Anchor(tensors["log_scale"], tensors["gate"])


@dataclass(frozen=True)
class MetaSGD:
    """Adaptation in weight space alone from a learned start, by learned rates (Li et al. 2017, on the same features).

    The steps are those of LEO's two loops together, so that both adapt as often.
    """

    config: MetaTrainConfig
    dim: int
    has_posterior = False

    @property
    def _steps(self) -> int:
        return self.config.inner_steps + self.config.finetuning_steps

    def initial(self, dtype: torch.dtype) -> Tensors:
        """See `Learner`: a Glorot-uniform start."""
        shape = (self.config.ways, self.dim)
        limit = (6 / sum(shape)) ** 0.5
        start = randomness.generator(self.config.seed, "parameters").uniform(-limit, limit, shape)
        return {
            "start": torch.from_numpy(start).to(dtype),
            "lr": torch.full(shape, self.config.inner_lr, dtype=dtype),
        }

    def draws(self, step: int | Tensor, tasks: range, like: Tensor, sets: Sets | None = None) -> Draws:
        """See `Learner`: dropout masks alone."""
        return _draws(self.config, self.dim, Method(0, self._steps, sampled=False), step, tasks, like, sets)

    def loss(
        self, tensors: Tensors, support: Tensor, query: Tensor, draws: Draws, sets: Sets | None = None
    ) -> MetaLoss:
        """See `Learner`: the query loss and the L2 penalty of the start."""
        weights = self._adapt(tensors, support, draws)
        query_loss, accuracy = score(predict(weights, masked(query, draws.query_mask, draws)))
        lead = tensors["start"].shape[:-2]  # () or (S,)
        l2, none = tensors["start"].square().sum((-2, -1)) / 2, query_loss.new_zeros(lead)
        l2_weight = sets.penalties.l2 if sets else self.config.l2_weight
        total = mean_of_each(query_loss, lead) + l2_weight * l2
        return MetaLoss(total, query_loss, accuracy, none, none, l2, none)

    def weights(self, tensors: Tensors, support: Tensor, numbers: range, shares: Tensor | None = None) -> Tensor:
        """See `Learner`.

        Raises:
            UsageError: other ways than the start has.
        """
        trained = len(tensors["start"])
        if support.shape[-3] != trained:
            raise UsageError(f"--ways {support.shape[-3]}: a meta-sgd run has its own {trained} ways only.")
        return self._adapt(tensors, support, Draws(), shares=shares)

    def path(self, tensors: Tensors, support: Tensor, numbers: range) -> Path:
        """See `Learner`: a point is what adapting with as many steps as lead to it gives."""
        points = [self._adapt(tensors, support, Draws(), step) for step in range(self._steps + 1)]
        return Path(None, torch.stack(points, 1))

    def code_map(self, tensors: Tensors) -> Tensor | None:
        """See `Learner`: there is none."""
        return None

    def posterior(
        self, tensors: Tensors, support: Tensor, numbers: range, samples: int, shares: Tensor | None = None
    ) -> Tensor:
        """See `Learner`.

        Raises:
            UsageError: always.
        """
        raise UsageError("meta-sgd: it has no codes, so it has no samples to draw.")

    def _adapt(
        self, tensors: Tensors, support: Tensor, draws: Draws, steps: int | None = None, shares: Tensor | None = None
    ) -> Tensor:
        steps, lead = self._steps if steps is None else steps, support.shape[:-3]
        images, _ = support_steps(support, shares, draws, steps, lead)
        start, rates = tensors["start"], tensors["lr"]
        if start.ndim == 3:
            start, rates = for_episodes(start, lead), for_episodes(rates, lead)
        else:
            start = start.expand(*lead, -1, -1)
        weights: Tensor = WeightLoop.apply(start, rates, *images, steps)
        return weights.view(*lead, *weights.shape[-2:])

    def fallback(self, tensors: Tensors) -> Tensors | None:
        """See `Learner`: there is none."""
        return None


def _draws(
    config: MetaTrainConfig,
    dim: int,
    method: Method,
    step: int | Tensor,
    tasks: range,
    like: Tensor,
    sets: Sets | None,
) -> Draws:
    draws = meta_training_draws(
        _shapes(config, dim, method, ways=config.ways),
        seed=sets.seeds if sets else config.seed,
        step=step,
        tasks=tasks,
        dropout=sets.dropout if sets else config.dropout,
        sampled=method.sampled,
        dtype=like.dtype,
    )
    # Those that were made on the CPU may be for another device.
    return Draws(*(None if value is None else value.to(like.device) for value in draws))


def _shapes(config: MetaTrainConfig, dim: int, method: Method, *, ways: int) -> DrawShapes:
    return DrawShapes(
        ways, config.shots, config.queries, dim, config.num_latents, method.inner_steps, method.finetuning_steps
    )


def make_learner(config: MetaTrainConfig, dim: int) -> Learner:
    """The learner of a run's configuration, see the table above, for features of width `dim`."""
    inner, finetuning, sampled = config.inner_steps, config.finetuning_steps, config.sampling
    methods = {
        "leo": Method(inner, finetuning, sampled),
        "no-finetuning": Method(inner, 0, sampled),
        "deterministic": Method(inner, finetuning, sampled=False),
        "random-prior": Method(inner, finetuning, sampled, encoded=False),
        "generator": Method(0, 0, sampled),
        "generator-finetuning": Method(0, finetuning, sampled),
        "anchored": Method(inner, finetuning, sampled),
    }
    if config.variant == "meta-sgd":
        return MetaSGD(config, dim)
    return LatentLearner(config, dim, methods[config.variant], anchored=config.variant == "anchored")
