"""`leokit pretrain`: image tree → backbone, trained to tell the meta-train classes apart."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from leokit import distributed, manifest, randomness
from leokit.backbones import default_layers, preprocessing_of
from leokit.backbones.layers import Layers
from leokit.backbones.pretrained import CONFIG, CURVES, METRICS, SCHEMA, STATE, WEIGHTS, open_pretrained
from leokit.backbones.training import Heads, new_network
from leokit.checks import Divided, check_pretrain, require_val, selecting
from leokit.config import PretrainConfig, default_workers, identity, parse_share, to_toml
from leokit.devices import check_device, resolve_device
from leokit.distributed import Job, World
from leokit.engine.logbook import cut_back, logged
from leokit.engine.pixels import FromDisk, InMemory, Pixels, available_memory, check_all, decode_all
from leokit.engine.pretraining import SHOTS, Labelled, Trainer, memory_errors
from leokit.errors import ArtifactError, DataError, Interrupted, disk_errors
from leokit.figures.pretraining import draw_pretraining, pretraining_in_words
from leokit.images.augmentation import Recipe
from leokit.images.decoding import decoder
from leokit.images.preprocess import Preprocessing
from leokit.images.scan import ImageTree
from leokit.interrupts import stop_requests
from leokit.provenance import information
from leokit.runs import fitting_state, load_state, save_parameters, save_state
from leokit.splits import Splits

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Plan:
    """Which images are for what; follows from the image tree, the splits and the options alone.

    Attributes:
        tree: the images there are.
        splits: how their classes are divided.
        classes: those that are trained on, in order.
        training: images that are trained on, with the numbers of their classes.
        held_out: other images of these classes.
        val: images of the meta-val classes that few-shot accuracy is measured on; none for train+val.
        val_classes: in order.
        images_id: hash of the names and sizes of all these images.
        select: what chooses the best weights.
    """

    tree: ImageTree
    splits: Splits
    classes: tuple[str, ...]
    training: tuple[tuple[str, int], ...]
    held_out: tuple[tuple[str, int], ...]
    val: tuple[tuple[str, int], ...]
    val_classes: tuple[str, ...]
    images_id: str
    select: str

    @property
    def total(self) -> int:
        """Images that are looked at."""
        return len(self.training) + len(self.held_out) + len(self.val)


def default_out(config: PretrainConfig) -> Path:
    """Where the backbone goes: `--out`, else its place under the work folder."""
    return config.out or config.work / "backbone"


def plan(
    config: PretrainConfig, divided: Divided | None = None, on_message: Callable[[str], None] = lambda text: None
) -> Plan:
    """Find the images and decide which are trained on, held out and validated on.

    Args:
        config: of the training.
        divided: the images and their division, where `check_pretrain` has found them already.
        on_message: called with what a user should know of the images, a sentence each.

    Raises:
        DataError: no images, splits that do not go with them, or classes with too few.
        UsageError: options that do not go together.
    """
    tree, splits = divided or check_pretrain(config)
    for sentence in (*tree.said, *([splits.note] if splits.note else [])):
        on_message(sentence)
    of_split = splits.images(tree.classes)
    with_val = config.classes == "train+val"
    used = {**of_split["train"], **(of_split["val"] if with_val else {})}
    classes = tuple(sorted(used, key=lambda name: name.encode()))
    select = selecting(config)
    training: list[tuple[str, int]] = []
    held_out: list[tuple[str, int]] = []
    for number, name in enumerate(classes):
        images = used[name]
        order = randomness.generator(config.seed, "holdout", number).permutation(len(images))
        count = min(len(images) - 1, max(1, int(config.holdout * len(images)))) if config.holdout else 0
        held = set(order[:count].tolist())
        for position, image in enumerate(images):
            (held_out if position in held else training).append((image, number))
    val_classes = () if with_val else tuple(of_split["val"])
    val = [
        (image, number)
        for number, name in enumerate(val_classes)
        for image in _spread(of_split["val"][name], config.val_images)
    ]
    listed = [[image, tree.size(image)] for part in (training, held_out, val) for image, _ in part]
    images_id = manifest.hash_text(manifest.canonical_json(listed))
    return Plan(tree, splits, classes, tuple(training), tuple(held_out), tuple(val), val_classes, images_id, select)


def _spread(images: Sequence[str], most: int) -> list[str]:
    """At most so many of the images, spread evenly over their order: the first ones, by name, may be easier."""
    count = min(most, len(images))
    return [images[position * len(images) // count] for position in range(count)]


def run(
    config: PretrainConfig,
    *,
    divided: Divided | None = None,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> manifest.Manifest:
    """Train a backbone on the classes of the train split, and keep its best weights.

    The same call on a finished training returns it; on an unfinished one it goes on from the last kept state. Under
    torchrun or srun each batch is divided among the ranks; rank 0 says how it goes.

    Args:
        config: of the training.
        divided: as for `plan`.
        on_progress: called with steps done, steps wanted, and a line on how it goes.
        on_message: called with what a user should know, a sentence each.

    Raises:
        UsageError: unknown backbone, layer or device, or options that do not go together.
        DataError: no images, splits that do not go with them, too few images of a class, or too many unreadable ones.
        ArtifactError: the place holds something else, or is another process's at the time.
        Diverged: a loss is not finite; the last state that was kept is whole.
        Interrupted: stopped by Ctrl-C or SIGTERM; the state is kept.
        LeokitError: out of memory, the disk is full, or another rank has ended.
    """
    place = distributed.world()
    check_device(config.device)
    say = _silent if place.rank or on_message is None else on_message
    planned = plan(config, divided, say)
    training = _Training(
        config,
        planned,
        place,
        resolve_device(config.device, place),
        on_progress=None if place.rank else on_progress,
        on_message=say,
    )
    exchange: Literal["gloo", "nccl"] = "nccl" if training.device.type == "cuda" else "gloo"
    with (
        distributed.joined(place, steps=exchange, on_message=on_message or _silent) as job,
        disk_errors(training.folder),
    ):
        return training.run(job)


class _Training:
    """One call of `run`, on one rank."""

    def __init__(
        self,
        config: PretrainConfig,
        planned: Plan,
        place: World,
        device: torch.device,
        *,
        on_progress: Progress | None,
        on_message: Callable[[str], None],
    ) -> None:
        self.started = time.perf_counter()
        self.folder = default_out(config)
        self.place, self.device = place, device
        self.on_progress, self.on_message = on_progress, on_message
        self.allowed = parse_share(config.max_failures)
        self.plan = planned
        self.network = _network(config, len(self.plan.classes))
        self.preprocessing = preprocessing_of(self.network.backbone, config.image_size)
        wanted = config.layer.split(",") if config.layer else default_layers(self.network.backbone)
        layers = Layers(self.network.backbone, tuple(wanted))
        self.layers = layers.names
        self.widths = dict(zip(self.layers, layers.widths(self.preprocessing.image_size), strict=True))
        self.shots: tuple[int, ...] = ()  # that episodes of the meta-val images can have
        self.counts: dict[str, int] = {}  # of images that can be read, by what they are for
        self.unreadable: Mapping[str, str] = {}  # the other ones, with the reasons
        self.config = replace(config, select=self.plan.select, layer=",".join(self.layers))  # type: ignore[arg-type]
        self.identified = {
            **identity(self.config),
            "preprocessing": self.preprocessing.to_plain(),
            "splits": {
                "source": self.plan.splits.source,
                "sha256": manifest.hash_text(manifest.canonical_json(self.plan.splits.canonical())),
            },
        }
        self.inputs = {"images": manifest.Input(self.plan.images_id, str(config.images))}

    def run(self, job: Job) -> manifest.Manifest:
        """Train, and on rank 0 keep what comes of it."""
        first = self.place.rank == 0
        with ExitStack() as held:
            done = False
            if first:
                held.enter_context(manifest.locked(self.folder))
                done = self._begin()
            if job.from_first(done):
                return open_pretrained(self.folder)
            with stop_requests() as stopped:
                self._train(job, stopped)
            job.wait()
            return open_pretrained(self.folder)

    def _begin(self) -> bool:
        """Make the folder ready; whether all is done already."""
        config = self.config
        if manifest.begin(self.folder, SCHEMA, self.identified, self.inputs, overwrite=config.overwrite):
            self.on_message(manifest.already_done(self.folder))
            return True
        if not config.resume or not (self.folder / STATE).exists():
            for name in (STATE, METRICS, CURVES):
                (self.folder / name).unlink(missing_ok=True)
        (self.folder / CONFIG).write_text(to_toml(identity(config)), encoding="utf-8")
        return False

    def _train(self, job: Job, stopped: Callable[[], bool]) -> None:
        config, first = self.config, self.place.rank == 0
        state = job.from_first(load_state(self.folder / STATE) if first and (self.folder / STATE).exists() else None)
        begun_with = None if state is None else state[1].get("unreadable")
        if not isinstance(begun_with, Mapping | None):
            raise ArtifactError(f"{self.folder / STATE} is no state of this training: begin anew with --no-resume.")
        with (
            memory_errors(config, self.device, self.place),
            self._images(job, stopped, begun_with) as (training, held_out, val),
        ):
            counted = {"train": training, "held_out": held_out, "val": val}
            self.counts = {name: len(labelled.labels) for name, labelled in counted.items()}
            self.shots = self._measurable(val)
            trainer = Trainer(
                config,
                self.network,
                training,
                recipe=_recipe(config, self.preprocessing),
                preprocessing=self.preprocessing,
                device=self.device,
                place=self.place,
                job=job,
            )
            if state is not None:
                with fitting_state(self.folder / STATE):
                    trainer.unpack(*state)
                self.on_message(f"Going on from step {trainer.progress.step}, in epoch {trainer.epoch + 1}.")
            begun, since = trainer.progress.step, time.perf_counter()
            with _log(self, trainer) if first else nullcontext(lambda line: None) as report:
                self._epochs(trainer, held_out, val, report, stopped)
            images = (trainer.progress.step - begun) * config.batch_size
            if first:
                self._finish(trainer, images / max(1e-9, time.perf_counter() - since))

    def _epochs(
        self,
        trainer: Trainer,
        held_out: Labelled,
        val: Labelled,
        report: Callable[[dict[str, Any]], None],
        stopped: Callable[[], bool],
    ) -> None:
        config, progress = self.config, trainer.progress
        text, since, counted = "", time.perf_counter(), progress.step
        while progress.step < trainer.steps:
            trainer.take()
            stop = trainer.agreed(stopped())
            if progress.step % trainer.steps_of_epoch == 0:
                trainer.check()
                line = trainer.line()
                rate = (progress.step - counted) * config.batch_size / (time.perf_counter() - since)
                line["images_per_second"] = round(rate, 1)
                if trainer.epoch % config.val_every == 0 or progress.step == trainer.steps:
                    line |= self._validate(trainer, held_out, val)
                report(line)
                self._keep(trainer)
                text = f"loss {line['loss']:.2f} acc {line['accuracy']:.0%}{_best_text(progress.best_accuracy)}"
                since, counted = time.perf_counter(), progress.step
            if self.on_progress:
                self.on_progress(progress.step, trainer.steps, f"epoch {min(trainer.epoch + 1, config.epochs)} {text}")
            if stop and progress.step < trainer.steps:
                trainer.check()
                self._keep(trainer)
                raise Interrupted(
                    f"Stopped at step {progress.step} of {trainer.steps}: the same command goes on from there."
                )

    def _validate(self, trainer: Trainer, held_out: Labelled, val: Labelled) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if len(held_out.labels):
            found |= trainer.held_out(held_out)
        if self.shots:
            found["few_shot"] = trainer.few_shot(val, self.layers, self.shots)
        select, key = self.plan.select, f"{self.config.val_shots}shot"
        if select == "few-shot":
            for layer, accuracies in found["few_shot"].items():
                accuracy, half_width = accuracies[key]
                trainer.consider(accuracy, half_width, layer)
        elif select == "supervised":
            accuracy, count = found["holdout_accuracy"], len(held_out.labels)
            half_width = 1.96 * (accuracy * (1 - accuracy) / count) ** 0.5
            trainer.consider(accuracy, half_width, self._layer(found))
        else:
            trainer.progress.best_accuracy = -1.0
            trainer.consider(0.0, 0.0, self._layer(found))
        return found

    def _layer(self, found: Mapping[str, Any]) -> str:
        """The layer whose features are best on meta-val, where the weights are selected by something else."""
        if not self.shots:
            return self.layers[0]
        shots = self.config.val_shots if self.config.val_shots in self.shots else self.shots[-1]
        return max(self.layers, key=lambda layer: found["few_shot"][layer][f"{shots}shot"][0])

    def _measurable(self, val: Labelled) -> tuple[int, ...]:
        """Shots for which few-shot accuracy can be measured.

        Raises:
            DataError: those that select are not among them.
        """
        config, found = self.config, []
        missing: dict[str, list[str]] = {}  # by the reason
        for shots in sorted({*SHOTS, config.val_shots}) if val.classes else ():
            try:
                require_val(config, val.classes, val.counts, shots)
                found.append(shots)
            except DataError as error:
                if self.plan.select == "few-shot" and shots == config.val_shots:
                    raise
                missing.setdefault(str(error), []).append(f"{shots}-shot")
        for reason, names in missing.items():
            self.on_message(f"The {' and '.join(names)} accuracy on meta-val is not measured. {reason}")
        if not found and len(self.layers) > 1:
            self.on_message(
                f"Features are taken of {self.layers[0]}, the first of {', '.join(self.layers)}: no accuracy on "
                "meta-val chooses among them. --layer takes another."
            )
        return tuple(found)

    def _keep(self, trainer: Trainer) -> None:
        tensors, record = trainer.pack()
        if self.place.rank == 0:
            save_state(self.folder / STATE, tensors, {**record, "unreadable": self.unreadable})

    @contextmanager
    def _images(
        self, job: Job, stopped: Callable[[], bool], begun_with: Mapping[str, str] | None
    ) -> Iterator[tuple[Labelled, Labelled, Labelled]]:
        """The images of the three purposes, decoded or ready to be.

        Args:
            job: whose ranks all leave out what one of them cannot read.
            stopped: whether to stop.
            begun_with: where a training goes on, the images that could not be read when it began, with the reasons.

        Raises:
            DataError: too many images cannot be read, or others than when the training began.
        """
        planned, stored = self.plan, _stored(self.preprocessing)
        shape = stored.shape
        size = planned.total * int(np.prod(shape))
        room = available_memory() // (2 * (default_workers() // self.place.workers() if self.place.size > 1 else 1))
        hold = self.config.cache == "memory" or (self.config.cache == "auto" and size <= room)
        workers = self.place.workers() if self.config.workers is None else self.config.workers
        names = [image for part, _ in self._parts() for image, _ in part]

        def on_progress(done: int, wanted: int) -> None:
            if self.on_progress:
                self.on_progress(done, wanted, "decoding images" if hold else "checking images")

        with decoder(planned.tree.root, stored, workers, members=planned.tree.members) as decode:
            if not hold:
                reasons = dict(begun_with or {})
                if begun_with is None:
                    own = self.place.share(names)
                    found = check_all(own, decode, on_progress=on_progress, stopped=stopped)
                    reasons = {own[number]: reason for number, reason in found.items()}
                self._leave_out(job, names, reasons, begun_with)
                yield self._labelled(
                    lambda start, good: FromDisk([names[start + i] for i in np.flatnonzero(good)], decode, self.device)
                )
                return
            pixels, found = decode_all(names, decode, shape, on_progress=on_progress, stopped=stopped)
        self._leave_out(job, names, {names[number]: reason for number, reason in found.items()}, begun_with)

        def held(start: int, good: NDArray[np.bool_]) -> Pixels:
            mine = pixels[start : start + len(good)]
            return InMemory(_on_device(torch.from_numpy(mine if good.all() else mine[good]), self.device))

        yield self._labelled(held)

    def _parts(self) -> list[tuple[tuple[tuple[str, int], ...], tuple[str, ...]]]:
        planned = self.plan
        return [
            (planned.training, planned.classes),
            (planned.held_out, planned.classes),
            (planned.val, planned.val_classes),
        ]

    def _labelled(self, held: Callable[[int, NDArray[np.bool_]], Pixels]) -> tuple[Labelled, Labelled, Labelled]:
        """The images of each purpose that can be read; `held` gives those of one, by its first and which are good."""
        made, start = [], 0
        for part, classes in self._parts():
            good = np.array([image not in self.unreadable for image, _ in part], bool)
            labels = np.array([number for _, number in part], np.int64)
            made.append(Labelled(held(start, good), labels[good], classes))
            start += len(part)
        training, held_out, val = made
        return training, held_out, val

    def _leave_out(
        self, job: Job, names: Sequence[str], reasons: Mapping[str, str], begun_with: Mapping[str, str] | None
    ) -> None:
        """Note which images cannot be read on any rank, and refuse others than before, too many, or a whole class."""
        found = {name: reason for part in job.gather(dict(reasons)) for name, reason in part.items()}
        reasons = {name: found[name] for name in names if name in found}
        self.unreadable = reasons
        if begun_with is not None and begun_with.keys() != reasons.keys():
            name = min(begun_with.keys() ^ reasons.keys())
            before, now = (f"not be read ({why[name]})" if name in why else "be read" for why in (begun_with, reasons))
            raise DataError(
                f"The image {name} could {before} when this training was begun, and can now {now}: the order of the "
                "images would be another. Make it as it was and run the same command, or begin anew with --no-resume."
            )
        if not reasons:
            return
        first = next(iter(reasons))
        said = f"{len(reasons)} of {len(names)} images could not be read, as {first} ({reasons[first]})"
        if len(reasons) > self.allowed(len(names)):
            raise DataError(
                f"{said}; --max-failures {self.config.max_failures} allows fewer: mend them and add --overwrite, or "
                "allow more."
            )
        left = {number for image, number in self.plan.training if image not in reasons}
        if self.plan.select == "supervised" and all(image in reasons for image, _ in self.plan.held_out):
            raise DataError(f"No image that is held out can be read, so nothing selects the weights: {said}.")
        empty = [name for number, name in enumerate(self.plan.classes) if number not in left]
        if empty:
            raise DataError(f"The class {empty[0]!r} has no image left to train on: {said}.")
        self.on_message(f"{said}; they are left out.")

    def _finish(self, trainer: Trainer, images_per_second: float) -> None:
        progress, planned, config = trainer.progress, self.plan, self.config
        save_parameters(self.folder / WEIGHTS, progress.best)
        lines = [json.loads(line) for line in (self.folder / METRICS).read_text(encoding="utf-8").splitlines()]
        best = next(line for line in reversed(lines) if line["epoch"] == progress.best_epoch)
        facts = {
            "model": config.backbone,
            "layer": progress.best_layer,
            "layer_selected_by": self._layer_selected_by(),
            "dim": self.widths[progress.best_layer],
            "preprocessing": self.preprocessing.to_plain(),
            "trained_on": list(planned.classes),
            "images": self.counts,
            "unreadable": list(self.unreadable),
            "parameters": sum(value.numel() for value in self.network.backbone.parameters()),
            "epochs": config.epochs,
            "best_epoch": progress.best_epoch,
            "select": planned.select,
            "holdout_accuracy": best.get("holdout_accuracy"),
            "few_shot": best.get("few_shot", {}).get(progress.best_layer),
        }
        manifest.finish(
            self.folder,
            SCHEMA,
            self.identified,
            self.inputs,
            results=[WEIGHTS],
            extras=[CONFIG, METRICS, STATE, CURVES],
            facts=facts | {"figures": {CURVES: pretraining_in_words(self.identified, facts)}},
            info=information(
                started=self.started,
                device=self.device,
                ranks=self.place.size,
                images_per_second=round(images_per_second, 1),
            ),
        )

    def _layer_selected_by(self) -> str:
        if len(self.layers) == 1:
            return "being the only one"
        return "few-shot accuracy on meta-val" if self.shots else "being the first"


def _log(training: _Training, trainer: Trainer) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
    """Take lines of metrics, into metrics.jsonl and the picture."""
    folder, config, classes = training.folder, training.config, len(training.plan.classes)
    lines = cut_back(folder / METRICS, lambda line: line["step"] <= trainer.progress.step)
    title = f"{config.backbone}, {classes} classes, seed {config.seed}"
    draw = partial(draw_pretraining, folder / CURVES, title=title, classes=classes, ways=config.val_ways)
    return logged(folder / METRICS, lines, draw)


def _silent(message: str) -> None:
    """Take a message and say nothing."""


def _best_text(accuracy: float) -> str:
    return f" best {accuracy:.1%}" if accuracy > 0 else ""


def _network(config: PretrainConfig, classes: int) -> Heads:
    return new_network(
        config.backbone,
        classes,
        image_size=config.image_size,
        dropout=config.dropout,
        rotation=config.rotation_weight > 0,
        seed=randomness.torch_seed(config.seed, "backbone"),
    )


def _recipe(config: PretrainConfig, preprocessing: Preprocessing) -> Recipe:
    return Recipe(
        size=preprocessing.image_size,
        scale=(config.crop_scale, 1.0),
        flip=config.flip,
        jitter=config.jitter,
        lighting=config.lighting,
        rotation=config.rotation_weight > 0,
    )


def _stored(preprocessing: Preprocessing) -> Preprocessing:
    """How images are held: resized as for testing, and the square in their middle."""
    return replace(preprocessing, image_size=preprocessing.resized, crop_pct=1.0)


def _on_device(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The pixels on the device where they take no more than a quarter of what is free there, else where they are."""
    if device.type != "cuda":
        return pixels
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.to(device) if pixels.numel() <= free // 4 else pixels.pin_memory()
