"""Pre-train a backbone to tell classes apart: the steps, their state, and what is measured on the way."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from inspect import signature
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leokit import randomness
from leokit.backbones import Layers
from leokit.backbones.training import Heads, make_average, make_loss, make_optimiser, make_schedule
from leokit.baselines import class_mean
from leokit.checks import check_batch
from leokit.config import PretrainConfig
from leokit.distributed import Job, World
from leokit.engine.pixels import Pixels
from leokit.engine.ranks import share_over_ranks
from leokit.engine.scoring import score
from leokit.engine.steps import Diverged
from leokit.episodes import EpisodeSampler, FeatureMatrix
from leokit.errors import LeokitError
from leokit.features import FeatureTable
from leokit.images import augmentation
from leokit.images.augmentation import Recipe
from leokit.images.preprocess import Preprocessing
from leokit.metrics import mean_interval

_AGREE_EVERY = 10  # steps between the ranks' agreements on whether to stop
_CHECK_EVERY = 50  # steps between looks at the loss on an accelerator
_EVALUATION_BATCH = 256
SHOTS = (1, 5)  # of the few-shot accuracies, beside those that select, where there are images enough


@dataclass(frozen=True)
class Labelled:
    """Images with the numbers of their classes."""

    pixels: Pixels
    labels: NDArray[np.int64]  # (n,)
    classes: tuple[str, ...]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))


@dataclass
class Progress:
    """Where a training is, and the best that it has come by.

    Attributes:
        step: steps taken.
        best_epoch: after which the best weights were had; `best_layer` is the layer that gave the best features.
        best_accuracy: what selects, with the half width of its 95 % interval.
        best: tensors of the backbone then.
        sums: over the steps since the last line: loss, classes right, turns right, norm of the gradient.
        skipped: of these steps, those whose gradient was not finite in float16: they changed no weights.
    """

    step: int = 0
    best_epoch: int = 0
    best_layer: str = ""
    best_accuracy: float = -1.0
    best_half_width: float = 0.0
    best: dict[str, Tensor] = field(default_factory=dict)
    sums: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    skipped: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))


class Trainer:
    """Takes the steps of a training; every rank of the job has one."""

    def __init__(
        self,
        config: PretrainConfig,
        network: Heads,
        training: Labelled,
        *,
        recipe: Recipe,
        preprocessing: Preprocessing,
        device: torch.device,
        place: World,
        job: Job,
    ) -> None:
        """Prepare.

        Raises:
            UsageError: a batch that cannot be divided, or is larger than all images.
        """
        self.config, self.training, self.recipe, self.preprocessing = config, training, recipe, preprocessing
        self.device, self.place, self.job = device, place, job
        self.steps_of_epoch = len(training.labels) // config.batch_size
        check_batch(config, len(training.labels), place.size)
        self.steps = self.steps_of_epoch * config.epochs
        shared = share_over_ranks(network, rank=place.rank, size=place.size, device=device, steps=job.steps)
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.network: Heads = shared.to(device, memory_format=self._layout)  # type: ignore[call-overload]
        self._block = _EVALUATION_BATCH  # halved where memory does not suffice
        self.optimiser = make_optimiser(
            config.optimizer, self.network, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
        self.schedule = make_schedule(
            config.schedule,
            self.optimiser,
            epochs=config.epochs,
            decay_epochs=config.decay_epochs,
            decay_rate=config.decay_rate,
            warmup_epochs=config.warmup_epochs,
            lr=config.lr,
            steps_of_epoch=self.steps_of_epoch,
        )
        self.average = None if config.ema is None else make_average(self.network, config.ema)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self.progress = Progress()
        # Where nothing waits for them before a line is written; float64 is unknown to Apple's GPUs.
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.progress.sums = self.progress.sums.to(device, exact)
        self.progress.skipped = self.progress.skipped.to(device, exact)
        self._labels = torch.from_numpy(training.labels).to(device)
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
        )
        self._loss = make_loss(config.label_smoothing)
        self._forward: Any = torch.compile(self.network) if config.compile else self.network
        if place.size > 1:
            devices = [device] if device.type == "cuda" else None
            # Batch norm's averages are the same on all ranks without being sent around; newer torch has another name.
            wrap: Any = nn.parallel.DistributedDataParallel
            known = signature(wrap).parameters
            buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            self._forward = wrap(self._forward, device_ids=devices, process_group=job.steps, **{buffers: False})
        self._batches: Iterator[Tensor] | None = None
        self._bad = torch.zeros((), device=device)
        self._known = (-1, np.empty(0, np.int64))  # an epoch and its order

    # Steps

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The images in the order of an epoch."""
        return randomness.generator(self.config.seed, "order", epoch).permutation(len(self.training.labels))

    def _share(self, step: int, part: int) -> tuple[slice, NDArray[np.int64]]:
        """What of a step's batch is this rank's in a part of it: places in the batch, and numbers of images."""
        config = self.config
        size = config.batch_size // config.accumulate
        own = size // self.place.size
        first = part * size + self.place.rank * own
        batch = step % self.steps_of_epoch * config.batch_size
        chosen = self._order(step // self.steps_of_epoch)[batch + first : batch + first + own]
        return slice(first, first + own), chosen

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._known[0] != epoch:
            self._known = (epoch, self.order(epoch))
        return self._known[1]

    def _numbers(self, step: int) -> Iterator[NDArray[np.int64]]:
        for number in range(step, self.steps):
            for part in range(self.config.accumulate):
                yield self._share(number, part)[1]

    def take(self) -> None:
        """One step, in place.

        Raises:
            Diverged: the loss is not finite; on a CPU nothing has changed then.
            LeokitError: out of memory, or another rank has ended.
        """
        try:
            with memory_errors(self.config, self.device, self.place):
                self._take()
        except RuntimeError as error:
            if self.place.size > 1 and ("Connection" in str(error) or "gloo" in str(error) or "NCCL" in str(error)):
                raise LeokitError(
                    "Another rank of the job has ended before its time; its own message says why. The last state that "
                    "was kept is whole: the same command goes on from there."
                ) from error
            raise

    def _take(self) -> None:
        config, progress = self.config, self.progress
        if self._batches is None:
            self._batches = self.training.pixels.batches(self._numbers(progress.step))
        self.network.train()
        self.schedule.step_update(progress.step)
        generator = randomness.generator(config.seed, "augmentation", progress.step)
        draws = augmentation.draw(self.recipe, config.batch_size, generator)
        self.optimiser.zero_grad(set_to_none=True)
        sums = torch.zeros(3, device=self.device)
        for part in range(config.accumulate):
            chosen, numbers = self._share(progress.step, part)
            pixels = next(self._batches).to(self.device, non_blocking=True)
            own = draws.rows(chosen)
            images = self._normalised(augmentation.augment(pixels, self.recipe, own))
            images = images.contiguous(memory_format=self._layout)
            last = part == config.accumulate - 1
            quiet = self._forward.no_sync() if self.place.size > 1 and not last else nullcontext()
            with quiet, self._seeded(part):
                labels = self._labels[torch.from_numpy(numbers).to(self.device, non_blocking=True)]
                sums += self._backward(images, labels, own.turns)
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.network.parameters() if p.grad is not None)
        self._check(sums[0], norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        progress.step += 1
        if self.average is not None:
            self.average.update(self.network, step=progress.step)
        finite = norm.isfinite()
        norm = torch.where(finite, norm, torch.zeros_like(norm))
        progress.sums += torch.cat([sums / config.accumulate, norm.reshape(1)]).to(progress.sums)
        progress.skipped += ~finite

    def _backward(self, images: Tensor, labels: Tensor, turns: NDArray[np.int64]) -> Tensor:
        """Add this part's gradient; its loss, and shares of classes and of turns that were guessed."""
        with self._autocast():
            logits, turned = self._forward(images)
            loss = self._loss(logits.float(), labels)
            right = torch.zeros((), device=self.device)
            if turned is not None:
                quarters = torch.from_numpy(turns).to(self.device, non_blocking=True)
                loss = loss + self.config.rotation_weight * cross_entropy(turned.float(), quarters)
                right = (turned.argmax(1) == quarters).float().mean()
        torch.autograd.backward(self.scaler.scale(loss / self.config.accumulate))
        return torch.stack([loss.detach(), (logits.argmax(1) == labels).float().mean(), right])

    def _check(self, loss: Tensor, norm: Tensor) -> None:
        """See that loss and (without a scaler) gradient are finite: each step on a CPU, now and then elsewhere."""
        bad = ~loss.isfinite() if self.scaler.is_enabled() else ~(loss + norm).isfinite()
        self._bad = torch.maximum(self._bad, bad.float())
        if self.device.type != "cpu" and self.progress.step % _CHECK_EVERY:
            return
        self.check()

    def check(self) -> None:
        """Raise where a loss was not finite, or no gradient has been for long.

        Raises:
            Diverged: so it is.
        """
        step = self.progress.step
        when = f"{'at' if self.device.type == 'cpu' else 'by'} step {step} (epoch {step // self.steps_of_epoch + 1})"
        if any(self.job.gather(bool(self._bad))) if self.place.size > 1 else bool(self._bad):
            raise Diverged(
                f"The loss or the gradient is not finite {when}. The last state that was kept is from before. Start "
                "anew (--overwrite) with a lower --lr, or with --warmup-epochs."
            )
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:  # halved after each such step, 65,536 at first
            raise Diverged(
                f"The gradients are not finite in float16 {when}, however small the loss is scaled: no weights change "
                "any more. Start anew (--overwrite) with --precision bfloat16, or a lower --lr."
            )

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self._mean) / self._std

    def _autocast(self) -> AbstractContextManager[Any]:
        precision = self.config.precision
        return nullcontext() if precision == "float32" else torch.autocast(self.device.type, getattr(torch, precision))

    @contextmanager
    def _seeded(self, part: int) -> Iterator[None]:
        """Within it, torch's own generators depend on seed and step alone: dropout draws from them."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(randomness.torch_seed(self.config.seed, "dropout", self.progress.step, part))
            yield

    @property
    def epoch(self) -> int:
        """Whole epochs that are done."""
        return self.progress.step // self.steps_of_epoch

    def line(self) -> dict[str, Any]:
        """Means over the steps since the last line, over all ranks."""
        parts = self.job.gather(self.progress.sums.tolist())
        count = (self.progress.step - 1) % self.steps_of_epoch + 1
        used = count - int(self.progress.skipped)
        means = np.mean(parts, axis=0)
        loss, right, turned = (means[:3] / count).tolist()
        norm = float(means[3] / used) if used else None
        self.progress.sums.zero_()
        self.progress.skipped.zero_()
        found = {"epoch": self.epoch, "step": self.progress.step, "loss": loss, "accuracy": right}
        if self.config.rotation_weight:
            found["rotation_accuracy"] = turned
        return {**found, "gradient_norm": norm, "lr": self.optimiser.param_groups[0]["lr"]}

    # Measures

    def evaluated(self) -> Heads:
        """The network that is measured and kept: the average of the weights where there is one."""
        chosen: Any = self.network if self.average is None else self.average.module
        found: Heads = chosen
        return found.eval()

    def _embedded(self, labelled: Labelled, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """What `embed` makes of this rank's share of the images, then of all: (n, …) on the CPU."""
        count, size = len(labelled.labels), self.place.size
        own = np.arange(self.place.rank, count, size)
        chunks = (own[start : start + _EVALUATION_BATCH] for start in range(0, len(own), _EVALUATION_BATCH))
        with torch.inference_mode(), self._autocast():
            made = [self._in_blocks(pixels, embed) for pixels in labelled.pixels.batches(chunks)]
        parts = self.job.gather(torch.cat(made).numpy() if made else None)  # a rank may have no image
        whole: NDArray[np.float32] | None = None
        for rank, part in enumerate(parts):
            if part is not None:
                whole = np.empty((count, *part.shape[1:]), np.float32) if whole is None else whole
                whole[rank::size] = part
        assert whole is not None, "there are images"
        return torch.from_numpy(whole)

    def _in_blocks(self, pixels: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """What `embed` makes of the middles of images, as many at a time as there is memory for."""
        while True:
            try:
                return torch.cat([self._measured(part, embed) for part in torch.split(pixels, self._block)])
            except RuntimeError as error:
                if self._block == 1 or not _is_of_memory(error):
                    raise
                self._block //= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _measured(self, pixels: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        middle = augmentation.centre(pixels.to(self.device), self.recipe.size).permute(0, 3, 1, 2)
        images = self._normalised(middle.float().div_(255)).contiguous(memory_format=self._layout)
        return embed(images).float().cpu()

    def held_out(self, labelled: Labelled) -> dict[str, Any]:
        """Loss (None where it is not finite) and accuracy on images of the same classes that are not trained on."""
        network = self.evaluated()
        logits = self._embedded(labelled, lambda images: network(images)[0])
        labels = torch.from_numpy(labelled.labels)
        loss = float(cross_entropy(logits, labels))
        return {
            "holdout_loss": loss if isfinite(loss) else None,
            "holdout_accuracy": float((logits.argmax(1) == labels).float().mean()),
        }

    def few_shot(self, labelled: Labelled, layers: tuple[str, ...], shots: Sequence[int]) -> dict[str, Any]:
        """Accuracy of nearest class mean on episodes of other classes, by layer and shots, with its half width.

        Args:
            labelled: images of these classes, in their order; `require_enough` holds for them.
            layers: whose features are measured.
            shots: each K that is measured.
        """
        network = Layers(self.evaluated().backbone, layers)
        features = self._embedded(labelled, lambda images: torch.cat(network(images), 1))
        offsets = np.concatenate([[0], np.cumsum(labelled.counts)])
        widths = network.widths(self.recipe.size)
        found: dict[str, Any] = {}
        for layer, part in zip(layers, torch.split(features, widths, 1), strict=True):
            table = FeatureTable(part.numpy(), list(labelled.classes), offsets)
            matrix = FeatureMatrix(table, device=self.device)
            sampler = EpisodeSampler(matrix.offsets, ways=self.config.val_ways, seed=0, purpose="selection")
            found[layer] = {}
            for count in shots:
                scores = score(
                    matrix,
                    sampler,
                    {"class-mean": lambda support, numbers: class_mean(support)},
                    shots=count,
                    queries=self.config.val_queries,
                    episodes=self.config.val_episodes,
                )
                found[layer][f"{count}shot"] = list(mean_interval(scores["class-mean"]))
        return found

    def consider(self, accuracy: float, half_width: float, layer: str) -> bool:
        """Keep the weights as the best if their accuracy is; whether it is."""
        progress = self.progress
        if not accuracy > progress.best_accuracy:
            return False
        progress.best_epoch, progress.best_layer = self.epoch, layer
        progress.best_accuracy, progress.best_half_width = accuracy, half_width
        tensors = self.evaluated().backbone.state_dict()
        progress.best = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        return True

    # State

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next step depends on, as tensors and plain data; every rank calls it."""
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average/{name}": value for name, value in self.average.module.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self.progress.best.items()}
        parts = self.job.gather((self.progress.sums.tolist(), float(self.progress.skipped)))
        tensors["sums"] = torch.tensor(np.mean([sums for sums, _ in parts], axis=0), dtype=torch.float64)
        tensors["skipped"] = torch.tensor(parts[0][1], dtype=torch.float64)
        plain: dict[str, Any] = {}
        for number, entry in self.optimiser.state_dict()["state"].items():
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser/{number}/{key}"] = value
                elif value is not None:
                    plain[f"{number}/{key}"] = value
        progress = self.progress
        record = {
            "step": progress.step,
            "best_epoch": progress.best_epoch,
            "best_layer": progress.best_layer,
            "best_accuracy": progress.best_accuracy,
            "best_half_width": progress.best_half_width,
            "optimiser": plain,
            "scaler": self.scaler.state_dict(),
        }
        return tensors, record

    def unpack(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on from what `pack` gave."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        self.network.load_state_dict(under("network/"))
        if self.average is not None:
            self.average.module.load_state_dict(under("average/"))
        state: dict[int, dict[str, Any]] = {}
        for name, value in [*under("optimiser/").items(), *record["optimiser"].items()]:
            number, _, key = name.partition("/")
            state.setdefault(int(number), {})[key] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        if record["scaler"]:
            self.scaler.load_state_dict(dict(record["scaler"]))
        self.progress = Progress(
            step=record["step"],
            best_epoch=record["best_epoch"],
            best_layer=record["best_layer"],
            best_accuracy=record["best_accuracy"],
            best_half_width=record["best_half_width"],
            best=under("best/"),
            sums=tensors["sums"].to(self.progress.sums, copy=True),
            skipped=tensors.get("skipped", torch.zeros(())).to(self.progress.sums, copy=True),
        )
        self._batches = None

    def agreed(self, stop: bool) -> bool:
        """Whether to stop now: on one rank where it is asked, on several where any is asked, at steps they share."""
        if self.place.size == 1:
            return stop
        return self.progress.step % _AGREE_EVERY == 0 and any(self.job.gather(stop))


@contextmanager
def memory_errors(config: PretrainConfig, device: torch.device, place: World) -> Iterator[None]:
    """Turn what is raised where memory runs out into a sentence that says what helps.

    Raises:
        LeokitError: in place of such an error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_of_memory(error):
            raise
        parts = _finer_parts(config, place)
        finer = (
            f"--accumulate {parts} (the same batch in smaller parts; batch norm then sees a part at a time), "
            * bool(parts)
        )
        raise LeokitError(
            f"Out of memory on {device} at batch size {config.batch_size} in {config.accumulate} part"
            f"{'s' * (config.accumulate > 1)}. Give {finer}a smaller --batch-size, --image-size or --backbone: with "
            "other options the training begins anew (--overwrite). The last state that was kept is whole; the same "
            "command goes on from it where there is more memory."
        ) from error


def _is_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: torch and CUDA's libraries have several ways to."""
    said = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in said for words in ("out of memory", "allocate memory", "_alloc_failed")
    )


def _finer_parts(config: PretrainConfig, place: World) -> int | None:
    """The next number of parts that divide the batch, of two images at least for each rank."""
    most = config.batch_size // (2 * place.size)
    numbers = range(config.accumulate + 1, most + 1)
    return next((number for number in numbers if config.batch_size % (number * place.size) == 0), None)
