"""The configuration of every stage: names, types, limits, help texts and defaults, each in this one place.

A stage's options are a frozen dataclass. A field's annotation carries its limits (checked by pydantic when the
configuration is built by `build`), its help text, and whether it can change results: what is marked `Outside`
(places, workers, devices) is left out of an artifact's id. Importing this module costs next to nothing: pydantic is
loaded by `build`.

Values come from the command line, the environment, a TOML file, a preset and the defaults, in this order of rank.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, astuple, dataclass, fields
from decimal import Decimal, InvalidOperation
from importlib.resources import files
from math import inf, isfinite
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from leokit.errors import ArtifactError, UsageError
from leokit.text import visible


class Outside:
    """Marks a field that cannot change results: it is outside an artifact's id."""


class Resolved(Outside):
    """Marks a field that is outside an artifact's id because what it resolves to is inside."""


class Argument:
    """Marks a field that the command line takes by position, without an option's name."""


Place = Annotated[Path | None, Outside()]
ClassLevel = Annotated[
    str | None,
    Resolved(),
    Doc(
        "Which folders are the classes: a number, 1 for the outermost folders; or path, the innermost ones, called by "
        "their path (default: the innermost ones, called by their name)."
    ),
]
Seed = Annotated[int, Ge(0), Lt(2**63), Doc("Seed of every draw; the same seed gives the same result.")]
Work = Annotated[Path, Outside(), Doc("Work folder: where inputs are looked for and outputs go unless named.")]
Device = Annotated[str, Outside(), Doc("auto, cpu, cuda, cuda:N or mps.")]
Workers = Annotated[
    int | None,
    Ge(0),
    Outside(),
    Doc("Worker processes (0: none; default: one for each core); never changes results."),
]
BatchSize = Annotated[
    int | None,
    Ge(1),
    Outside(),
    Doc("Images that are on their way at a time (default: by the workers); never changes results."),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"], Doc("Of the model's computation; below float32 by autocast.")
]
CudaGraph = Annotated[bool, Outside(), Doc("On CUDA a whole step is one graph that is replayed.")]
ImageSize = Annotated[int | None, Ge(8), Doc("Side of the model's input in pixels (default: timm's).")]
MaxFailures = Annotated[str, Outside(), Doc("Most unreadable images allowed: a number, or a share as 1%.")]
TestFeatures = Annotated[Path | None, Outside(), Doc("Features to test on (default: WORK/features).")]
TestWays = Annotated[int | None, Ge(2), Doc("Classes of an episode (N) (default: the run's).")]
Resume = Annotated[bool, Outside(), Doc("Go on from the last state that was kept.")]
Overwrite = Annotated[bool, Outside(), Doc("Replace what another configuration made at the same place.")]
DEFAULT_WORK = Path("leokit-work")
DEFAULT_STEPS = 100_000  # of meta-training
BUNDLED = "tf_efficientnet_lite0"  # the backbone whose weights come with the extra 'demo'
_HUB = re.compile(r"(https?://huggingface\.co/|hf[-_]hub:)?timm/")  # before a model's name, as the Hub shows it
COMMANDS = (  # the tables that a config file may have
    "demo",
    "pretrain",
    "extract",
    "import",
    "meta-train",
    "search",
    "eval",
    "uncertainty",
    "analyze",
    "regress-train",
    "regress-plot",
    "regress-eval",
    "table",
    "report",
    "predict",
    "fit",
    "export",
    "inspect",
    "verify",
    "splits-list",
    "splits-show",
    "splits-check",
    "bench-extract",
    "bench-read",
    "bench-pretrain",
    "bench-meta-train",
    "bench-search",
    "bench-seeds",
    "bench-eval",
    "bench-uncertainty",
)

Triple = tuple[float, float, float]
Number = TypeVar("Number", int, float)
_LIMITS = (Gt, Ge, Lt, Le)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Options of `leokit demo`."""

    out: Annotated[Path, Argument(), Outside(), Doc("New folder for the images and splits.csv.")]
    per_class: Annotated[int, Ge(1), Le(10_000), Doc("Images of each class.")] = 40
    size: Annotated[int, Ge(32), Le(1024), Doc("Width and height of an image in pixels.")] = 84
    seed: Seed = 0
    workers: Workers = None
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Options of `leokit extract`."""

    images: Annotated[Path, Argument(), Outside(), Doc("Image tree: a folder for each class.")]
    out: Annotated[Place, Doc("Folder of the features (default: WORK/features).")] = None
    splits: Annotated[
        str | None,
        Resolved(),
        Doc(
            "miniimagenet, tieredimagenet, random:TRAIN/VAL/TEST (numbers of classes), a CSV file class_name,split, "
            "or a folder with train.csv, val.csv, test.csv (default: splits.csv in the image tree, else its folders "
            "train, val and test)."
        ),
    ] = None
    class_level: ClassLevel = None
    backbone: Annotated[str, Doc("Name of a timm model; or wrn28_10 and its family.")] = BUNDLED
    backbone_run: Annotated[
        Path | None,
        Resolved(),
        Doc("Folder of a backbone that leokit pretrain made; in place of --backbone, --weights and --trained-on."),
    ] = None
    weights: Annotated[
        str,
        Resolved(),
        Doc("auto, bundled (the extra 'demo'), pretrained (timm's, from a hub), or a safetensors or torch file."),
    ] = "auto"
    trained_on: Annotated[
        Literal["imagenet-1k", "imagenet-21k", "web", "unknown"] | None, Doc("What a weights file was trained on.")
    ] = None
    image_size: ImageSize = None
    crop_pct: Annotated[float | None, Gt(0), Le(1), Doc("Share of the resized side that the centre crop keeps.")] = None
    mean: Annotated[Triple | None, Doc("Mean of each channel, on a scale of 0 to 1.")] = None
    std: Annotated[Triple | None, Doc("Standard deviation of each channel, on a scale of 0 to 1.")] = None
    interpolation: Annotated[Literal["bilinear", "bicubic", "nearest", "lanczos"] | None, Doc("How to resize.")] = None
    views: Annotated[
        Literal["center", "flip", "ten-crop"],
        Doc(
            "What of an image is embedded and averaged: its centre; that and its mirror image; or four corners and the "
            "centre, each with its mirror image (the paper's multi-view features)."
        ),
    ] = "center"
    layer: Annotated[
        str | None,
        Doc(
            "An inner layer by timm's name, averaged over places (default: what the classifier would get; of a wrn its "
            "layer 21, group3.block2; of a --backbone-run the layer that its meta-val chose)."
        ),
    ] = None
    normalize: Annotated[
        Literal["none", "l2"], Doc("What to do to a vector before it is stored; LEO divides by the L2 norm on reading.")
    ] = "none"
    precision: Precision = "float32"
    compile: Annotated[bool, Doc("Compile the model; pays on large sets.")] = False
    jpeg_scaling: Annotated[
        bool, Doc("Decode large JPEGs at a half, quarter or eighth of their size; faster, features change a little.")
    ] = False
    decode: Annotated[Literal["cpu", "gpu"], Doc("Where JPEGs are decoded; gpu needs CUDA.")] = "cpu"
    dtype: Annotated[Literal["float16", "float32"], Doc("Stored type of the features.")] = "float16"
    max_failures: MaxFailures = "1%"
    retry_failed: Annotated[
        bool, Outside(), Doc("Read again the images that could not be read, and those that have changed since.")
    ] = False
    seed: Seed = 0
    device: Device = "auto"
    workers: Workers = None
    batch_size: BatchSize = None
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Options of `leokit pretrain`; the defaults of augmentation and optimiser are those of Qiao et al. (2018)."""

    images: Annotated[Path, Argument(), Outside(), Doc("Image tree: a folder for each class.")]
    out: Annotated[Place, Doc("Folder of the backbone (default: WORK/backbone).")] = None
    splits: Annotated[str | None, Resolved(), Doc("The splits, as extract takes them.")] = None
    class_level: ClassLevel = None
    classes: Annotated[
        Literal["train", "train+val"],
        Doc("Whose images to train on; with val, no few-shot accuracy on val can select the weights."),
    ] = "train"
    backbone: Annotated[str, Doc("wrnDEPTH_WIDTH (10 to 40 deep, 1 to 10 wide), or the name of a timm model.")] = (
        "wrn28_10"
    )
    layer: Annotated[
        str | None,
        Doc(
            "Layers, with commas, of which the best on meta-val gives the features (default: of a wrn group3.block2 "
            "and group3.block2.relu, before and after batch norm and ReLU; else pooled)."
        ),
    ] = None
    image_size: ImageSize = None
    epochs: Annotated[int, Ge(1), Doc("Passes over the images.")] = 90
    batch_size: Annotated[int, Ge(2), Doc("Images of a step, over all ranks.")] = 64
    accumulate: Annotated[int, Ge(1), Doc("Parts of a batch that go through the model one after the other.")] = 1
    optimizer: Annotated[str, Doc("timm's name of it; sgd is with Nesterov momentum.")] = "sgd"
    lr: Annotated[float, Gt(0), Doc("Learning rate.")] = 0.1
    momentum: Annotated[float, Ge(0), Lt(1), Doc("Momentum of sgd.")] = 0.9
    weight_decay: Annotated[float, Ge(0), Doc("Weight decay.")] = 1e-4
    schedule: Annotated[Literal["cosine", "step", "constant"], Doc("How the learning rate falls.")] = "cosine"
    decay_epochs: Annotated[int, Ge(1), Doc("Epochs between the steps of --schedule step.")] = 30
    decay_rate: Annotated[float, Gt(0), Le(1), Doc("What each of them multiplies the learning rate with.")] = 0.1
    warmup_epochs: Annotated[int, Ge(0), Doc("Epochs in which the learning rate rises to --lr.")] = 0
    label_smoothing: Annotated[float, Ge(0), Lt(1), Doc("Share of the target that all classes share.")] = 0.0
    rotation_weight: Annotated[
        float,
        Ge(0),
        Doc(
            "Weight of guessing by which quarter an image was turned (0: none is turned). The class is guessed of the "
            "turned images too, unlike Gidaris et al. (2019), who show upright ones for it beside."
        ),
    ] = 0.0
    dropout: Annotated[float, Ge(0), Lt(1), Doc("In the blocks of a wrn; of others, before the classifier.")] = 0.0
    ema: Annotated[
        float | None, Gt(0), Lt(1), Doc("Keep a moving average of the weights with this decay, and measure that.")
    ] = None
    crop_scale: Annotated[float, Gt(0), Le(1), Doc("Least share of an image's area that is cut out.")] = 0.08
    flip: Annotated[float, Ge(0), Le(1), Doc("Share of images that are mirrored.")] = 0.5
    jitter: Annotated[float, Ge(0), Le(1), Doc("Brightness, contrast, saturation change by ± this share.")] = 0.4
    lighting: Annotated[float, Ge(0), Doc("Deviation of light along ImageNet's principal colours.")] = 0.1
    holdout: Annotated[
        float, Ge(0), Lt(1), Doc("Share of each class's images kept out of training, for supervised accuracy.")
    ] = 0.05
    val_every: Annotated[int, Ge(1), Doc("Epochs between validations.")] = 5
    select: Annotated[
        Literal["few-shot", "supervised", "last"] | None,
        Doc(
            "What chooses the best weights: nearest class mean on meta-val, accuracy on images held out, or being the "
            "last (default: few-shot; for train+val supervised)."
        ),
    ] = None
    val_shots: Annotated[int, Ge(1), Doc("Shots of the few-shot accuracy that selects.")] = 5
    val_ways: Annotated[int, Ge(2), Doc("Classes of a meta-validation episode.")] = 5
    val_queries: Annotated[int, Ge(1), Doc("Query images of each class in it.")] = 15
    val_episodes: Annotated[int, Ge(2), Doc("Meta-validation episodes; the same ones each time.")] = 1000
    val_images: Annotated[int, Ge(2), Doc("Most images of a meta-val class that are looked at, spread over them.")] = (
        600
    )
    precision: Precision = "float32"
    channels_last: Annotated[bool, Doc("Keep the channels of maps last in memory; fastest nearly everywhere.")] = True
    compile: Annotated[bool, Doc("Compile the model; pays on long trainings.")] = False
    cache: Annotated[
        Literal["auto", "memory", "none"],
        Outside(),
        Doc("Hold decoded images in memory, or decode them in each epoch (auto: memory where they fit in half of it)."),
    ] = "auto"
    max_failures: MaxFailures = "1%"
    seed: Seed = 0
    device: Device = "auto"
    workers: Workers = None
    resume: Resume = True
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class BenchExtractConfig:
    """Options of `leokit bench extract`."""

    images: Annotated[Path, Argument(), Outside(), Doc("Image tree: a folder for each class.")]
    class_level: ClassLevel = None
    repeat: Annotated[int, Ge(1), Outside(), Doc("How often to go through the images.")] = 1
    backbone: Annotated[str, Doc("Name of a timm model.")] = ExtractConfig.backbone
    weights: Annotated[
        str, Resolved(), Doc("random (as fast as any), or as extract takes them: auto, bundled, pretrained or a file.")
    ] = "random"
    image_size: ImageSize = None
    views: Annotated[Literal["center", "flip", "ten-crop"], Doc("As extract takes it.")] = "center"
    precision: Precision = "float32"
    compile: Annotated[bool, Doc("Compile the model.")] = False
    jpeg_scaling: Annotated[bool, Doc("Decode large JPEGs at a part of their size.")] = False
    decode: Annotated[Literal["cpu", "gpu"], Doc("Where JPEGs are decoded; gpu needs CUDA.")] = "cpu"
    seconds: Annotated[float, Gt(0), Outside(), Doc("How long to measure each part alone.")] = 10.0
    device: Device = "auto"
    workers: Workers = None
    batch_size: BatchSize = None


@dataclass(frozen=True, kw_only=True)
class BenchReadConfig:
    """Options of `leokit bench read`."""

    rows: Annotated[int, Ge(1), Outside(), Doc("Rows of the store that is made (default: tieredImageNet's).")] = 779_165
    dim: Annotated[int, Ge(1), Outside(), Doc("Length of a row.")] = 640
    dtype: Annotated[Literal["float16", "float32"], Outside(), Doc("Stored type.")] = "float16"
    folder: Annotated[Place, Doc("Where to make the store, for as long as this takes (default: temporary files').")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Options of `leokit import`."""

    source: Annotated[
        Path,
        Argument(),
        Outside(),
        Doc(
            "A folder with train_embeddings.pkl, val_embeddings.pkl and test_embeddings.pkl of DeepMind, or one that "
            "holds its folders DATASET/CROP; a folder with train, val, test as .npz or .npy; or one such file."
        ),
    ]
    out: Annotated[Place, Doc("Folder of the features (default: WORK/features).")] = None
    dataset: Annotated[
        Literal["miniImageNet", "tieredImageNet"] | None,
        Resolved(),
        Doc("Which of DeepMind's data sets, where SOURCE holds several."),
    ] = None
    crop: Annotated[
        Literal["center", "multiview"] | None, Resolved(), Doc("Which of its crops, where SOURCE holds several.")
    ] = None
    splits: Annotated[
        str | None,
        Resolved(),
        Doc(
            "For one .npz or .npy file: miniimagenet, tieredimagenet, random:TRAIN/VAL/TEST (numbers of classes), a "
            "CSV file class_name,split, or a folder with train.csv, val.csv, test.csv."
        ),
    ] = None
    backbone_name: Annotated[
        str | None,
        Doc("What made the embeddings: under one name they count as of one backbone (default: known of DeepMind's)."),
    ] = None
    trained_on: Annotated[
        Literal["train", "imagenet-1k", "imagenet-21k", "web", "unknown"] | None,
        Doc(
            "What the backbone was trained on; train: the classes of the train split "
            "(default: train for DeepMind's, else unknown)."
        ),
    ] = None
    dtype: Annotated[Literal["float16", "float32"], Doc("Stored type of the features.")] = "float32"
    seed: Seed = 0
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Options of `leokit inspect`."""

    path: Annotated[Path, Argument(), Outside(), Doc("Folder of an artifact, finished or not.")]
    classes: Annotated[bool, Outside(), Doc("List every class with its number of images.")] = False


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Options of `leokit verify`."""

    paths: Annotated[tuple[Path, ...], Argument(), Outside(), Doc("Folders of artifacts.")]


@dataclass(frozen=True, kw_only=True)
class SplitsListConfig:
    """Options of `leokit splits list`."""


@dataclass(frozen=True, kw_only=True)
class SplitsShowConfig:
    """Options of `leokit splits show`."""

    name: Annotated[
        str,
        Argument(),
        Outside(),
        Doc(
            "miniimagenet, tieredimagenet, a CSV file class_name,split, or a folder with train.csv, val.csv, test.csv."
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class SplitsCheckConfig:
    """Options of `leokit splits check`."""

    images: Annotated[Path, Argument(), Outside(), Doc("Image tree: a folder for each class.")]
    splits: Annotated[
        str | None,
        Outside(),
        Doc("The splits, as extract takes them (default: the splits.csv or the folders train, val, test of the tree)."),
    ] = None
    class_level: ClassLevel = None
    seed: Seed = 0


Variant = Literal[
    "leo",
    "no-finetuning",
    "deterministic",
    "random-prior",
    "generator",
    "generator-finetuning",
    "meta-sgd",
    "anchored",
]


@dataclass(frozen=True, kw_only=True)
class MetaTrainConfig:
    """Options of `leokit meta-train`; the defaults of the method are those of DeepMind's code (its config.py)."""

    features: Annotated[Place, Doc("Features to train on (default: WORK/features).")] = None
    out: Annotated[
        Place, Doc("Folder of the run (default: WORK/runs/VARIANT-Nway-Kshot, -seedS unless 0, -trainval).")
    ] = None
    preset: Annotated[
        str | None,
        Resolved(),
        Doc("Published hyper-parameters, or own-images, ours (default: the miniImageNet preset nearest to the shots)."),
    ] = None
    variant: Annotated[Variant, Doc("The method: a row of the paper's Table 2, or anchored (ours: own-images).")] = (
        "leo"
    )
    ways: Annotated[int, Ge(2), Doc("Classes of an episode (N).")] = 5
    shots: Annotated[int, Ge(1), Doc("Support images of each class (K).")] = 1
    queries: Annotated[int, Ge(1), Doc("Query images of each class in training.")] = 15
    steps: Annotated[
        int | None,
        Ge(1),
        Doc(f"Meta-training steps (default: {DEFAULT_STEPS}, or those of --steps-from; none for --train-on-val)."),
    ] = None
    steps_from: Annotated[
        Place, Doc("Take as many steps as this earlier run had taken when it was best on meta-val.")
    ] = None
    train_on_val: Annotated[
        bool, Doc("Train on the classes of train and val; the weights of the last step are kept, none are selected.")
    ] = False
    meta_batch: Annotated[int, Ge(1), Doc("Episodes of a step.")] = 12
    num_latents: Annotated[int, Ge(1), Doc("Width of a class's latent code (Z).")] = 64
    inner_steps: Annotated[int, Ge(0), Doc("Adaptation steps in latent space.")] = 5
    finetuning_steps: Annotated[int, Ge(0), Doc("Fine-tuning steps in weight space.")] = 5
    inner_lr: Annotated[float, Doc("Start of the learned step size in latent space.")] = 1.0
    finetuning_lr: Annotated[float, Doc("Start of the learned step size in weight space.")] = 1e-3
    dropout: Annotated[float, Ge(0), Lt(1), Doc("Share of input features dropped in meta-training.")] = 0.5
    kl_weight: Annotated[float, Ge(0), Doc("Weight of the codes' KL divergence (β).")] = 1e-3
    encoder_penalty_weight: Annotated[float, Ge(0), Doc("Weight of the encoder penalty (γ).")] = 1e-9
    l2_weight: Annotated[float, Ge(0), Doc("Weight of ½Σw² over encoder, relation network, decoder (λ₁).")] = 1e-8
    orthogonality_weight: Annotated[float, Ge(0), Doc("Weight of the decoder's orthogonality penalty (λ₂).")] = 1e-3
    outer_lr: Annotated[float, Gt(0), Doc("Learning rate of Adam (η).")] = 1e-4
    anchor_scale: Annotated[float, Gt(0), Doc("Start of the scale of the class means (anchored).")] = 10.0
    anchor_gate: Annotated[float, Doc("Start of the gate on the correction (anchored).")] = 0.1
    anchor_lr_factor: Annotated[float, Gt(0), Doc("Learning rate of scale and gate, as a multiple of --outer-lr.")] = (
        10.0
    )
    sampling: Annotated[
        bool, Doc("Draw codes and weights in meta-training; without, they are their means and there is no KL term.")
    ] = True
    centring: Annotated[
        bool, Doc("Centre features on the mean of those trained on, and normalise them again (CL2N).")
    ] = False
    compile: Annotated[bool, Doc("Compile the loss of a step; takes most of a minute first.")] = False
    clip_value: Annotated[float, Gt(0), Doc("Each entry of a gradient is clipped to ± this,")] = 0.1
    clip_norm: Annotated[float, Gt(0), Doc("then each gradient to this norm.")] = 0.1
    val_every: Annotated[int, Ge(1), Doc("Steps between validations.")] = 1000
    val_episodes: Annotated[int, Ge(2), Doc("Meta-validation episodes; the same ones each time.")] = 2000
    val_queries: Annotated[int, Ge(1), Doc("Query images of each class in validation.")] = 15
    skip_small_classes: Annotated[
        bool, Resolved(), Doc("Leave out classes with too few images for an episode, in place of an error.")
    ] = False
    patience: Annotated[
        int | None, Ge(1), Doc("Stop when so many validations in a row were no better than the best (default: never).")
    ] = None
    on_nan: Annotated[
        Literal["stop", "decay"],
        Doc("A loss or gradient that is no number: stop, or decay the weights as DeepMind's code."),
    ] = "stop"
    dtype: Annotated[Literal["float32", "float64"], Doc("Type of the computation.")] = "float32"
    hold_as: Annotated[
        Literal["float16"] | None, Doc("Hold unit features in half the memory of the device (default: as --dtype).")
    ] = None
    cuda_graph: CudaGraph = True
    seed: Seed = 0
    seeds: Annotated[
        int, Ge(1), Le(1000), Outside(), Doc("Train so many seeds, from --seed on, each a run of its own.")
    ] = 1
    parallel: Annotated[
        Literal["auto", "processes", "batched", "none"],
        Outside(),
        Doc(
            "Several seeds at a time: processes, each as if alone; batched, their steps as one on one device, which "
            "gives the weights of a run alone but for rounding; auto: batched on CUDA, processes on a CPU with room."
        ),
    ] = "auto"
    jobs: Annotated[
        int | None,
        Ge(1),
        Outside(),
        Doc("Processes at a time for seeds, each with the threads of a run alone (default: as many as fit the cores)."),
    ] = None
    device: Device = "auto"
    resume: Resume = True
    tensorboard: Annotated[bool, Outside(), Doc("Copy the metrics to TensorBoard's events in RUN/tensorboard.")] = False
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


_FROM_PRESET = "(default: the preset's)"


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Options of `leokit search`; those of its trials that are not drawn are meta-train's."""

    features: Annotated[Place, Doc("Features to train and select on; their test part is not read.")] = None
    out: Annotated[Place, Doc("Folder of the search (default: WORK/search/VARIANT-Nway-Kshot, -seedS unless 0).")] = (
        None
    )
    preset: Annotated[
        str | None,
        Resolved(),
        Doc("The values of trial 0, and of what is not drawn (default: the miniImageNet preset nearest to the shots)."),
    ] = None
    space: Annotated[
        str | None,
        Resolved(),
        Doc(
            "What is drawn, and from where: a TOML file (OPTION = { log_uniform = [1e-5, 1e-3] }, { uniform = [0, 0.5] "
            "} or { choice = [32, 64] }; OPTION = VALUE is fixed), or a ready one: published, own-images (default: by "
            "the variant)."
        ),
    ] = None
    trials: Annotated[int, Ge(1), Doc("Number of trials; with more of them a finished search goes on.")] = 40
    halving: Annotated[
        bool, Doc("Successive halving: train all trials a little, the best of them longer, and so on to the end.")
    ] = False
    reduction: Annotated[int, Ge(2), Doc("With --halving: one in so many trials goes on to the next rung.")] = 3
    fresh_episodes: Annotated[
        int, Ge(2), Doc("Meta-val episodes that chose nothing, on which the best trial and the preset are compared.")
    ] = 10_000
    variant: Annotated[Variant | None, Resolved(), Doc(f"The method {_FROM_PRESET}.")] = None
    ways: Annotated[int | None, Resolved(), Ge(2), Doc(f"Classes of an episode (N) {_FROM_PRESET}.")] = None
    shots: Annotated[int | None, Resolved(), Ge(1), Doc(f"Support images of each class (K) {_FROM_PRESET}.")] = None
    steps: Annotated[
        int | None,
        Resolved(),
        Ge(1),
        Doc(f"Meta-training steps of a trial (default: the preset's, or {DEFAULT_STEPS})."),
    ] = None
    val_every: Annotated[int | None, Resolved(), Ge(1), Doc(f"Steps between validations {_FROM_PRESET}.")] = None
    val_episodes: Annotated[
        int | None, Resolved(), Ge(2), Doc(f"Meta-val episodes that choose, the same for all trials {_FROM_PRESET}.")
    ] = None
    val_queries: Annotated[
        int | None, Resolved(), Ge(1), Doc(f"Query images of each class in validation {_FROM_PRESET}.")
    ] = None
    patience: Annotated[
        int | None,
        Resolved(),
        Ge(1),
        Doc(f"End a trial when so many validations in a row were no better than its best {_FROM_PRESET}."),
    ] = None
    seed: Annotated[
        int, Resolved(), Ge(0), Lt(2**63), Doc("Seed of the values drawn, and of each trial's training.")
    ] = 0
    jobs: Annotated[
        int | None,
        Outside(),
        Ge(1),
        Doc("Trials, or batches of them, at a time, a process and a core each (default: one a core; on CUDA one)."),
    ] = None
    batched: Annotated[
        int | None,
        Ge(1),
        Le(1000),
        Doc(
            "Trials whose steps a process takes as one, where they differ in nothing but rates, starts, dropout and "
            "penalties; each is what it is alone, to rounding (default: that of the search that is there; else 1, on "
            "CUDA 8, which is not measured)."
        ),
    ] = None
    backend: Annotated[
        Literal["loky", "dask"],
        Outside(),
        Doc("Where trials run: processes of this machine, or workers of Dask (extra 'dask')."),
    ] = "loky"
    scheduler: Annotated[
        str | None,
        Outside(),
        Doc("Address of a Dask scheduler, as tcp://host:8786 (default: a cluster of --jobs workers on this machine)."),
    ] = None
    only: Annotated[
        str | None,
        Outside(),
        Doc("INDEX/COUNT: run one of COUNT shares of the trials, from 0, and leave; without it all is gathered."),
    ] = None
    rows: Annotated[
        Place,
        Doc("Folder for the unit rows that all trials map into memory, kept afterwards (default: in the search's)."),
    ] = None
    device: Device = "auto"
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Options of `leokit eval`."""

    runs: Annotated[tuple[Path, ...], Argument(), Outside(), Doc("Runs to test (default: see --run).")] = ()
    run: Annotated[Place, Doc("The one run to test (default: the only one in WORK/runs, or leo-Nway-Kshot there).")] = (
        None
    )
    features: TestFeatures = None
    out: Annotated[Place, Doc("Folder of the result (default: WORK/eval/RUN).")] = None
    split: Annotated[Literal["train", "val", "test"], Doc("Which classes.")] = "test"
    ways: TestWays = None
    shots: Annotated[int | None, Ge(1), Doc("Support images of each class (K) (default: the run's, else 1).")] = None
    queries: Annotated[
        str,
        Doc("Query images of each class: a number, rest600 (600 - K, the reference's protocol), or all others."),
    ] = "15"
    episodes: Annotated[int, Ge(2), Doc("Number of episodes.")] = 10_000
    methods: Annotated[
        str,
        Doc("Others on the same episodes, with commas: class-mean, centred-class-mean (CL2N), ridge, logistic."),
    ] = "class-mean"
    seed: Seed = 0
    device: Device = "auto"
    workers: Annotated[
        int | None,
        Ge(0),
        Outside(),
        Doc(
            "Threads, or for logistic regression processes, that share the episodes (0: none; default: one for each "
            "core); never changes results."
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Ge(1),
        Outside(),
        Doc("Episodes that are on their way at a time (default: by the workers); never changes results."),
    ] = None
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class UncertaintyConfig:
    """Options of `leokit uncertainty`."""

    runs: Annotated[
        tuple[Path, ...],
        Argument(),
        Outside(),
        Doc("The run to look at, and further ones that form an ensemble with it (default: as eval finds one)."),
    ] = ()
    features: TestFeatures = None
    out: Annotated[Place, Doc("Folder of the result (default: WORK/uncertainty/RUN).")] = None
    ways: TestWays = None
    shots: Annotated[int | None, Ge(1), Doc("Support images of each class (K) (default: the run's).")] = None
    queries: Annotated[int, Ge(1), Doc("Query images of each class, and as many of outside classes.")] = 15
    episodes: Annotated[int, Ge(2), Doc("Number of meta-test episodes.")] = 2000
    samples: Annotated[int, Ge(2), Doc("Samples of codes and weights (S), each adapted.")] = 100
    calibration_episodes: Annotated[
        int,
        Ge(0),
        Doc("Meta-val episodes that temperatures and prediction sets are fitted on (0: neither of them)."),
    ] = 1000
    bins: Annotated[int, Ge(2), Le(1000), Doc("Bins of confidence, of calibration errors.")] = 15
    resamples: Annotated[int, Ge(100), Doc("Resamples of episodes, for intervals.")] = 1000
    curve_shots: Annotated[
        str, Doc("Numbers of shots, with commas, for the parts of uncertainty against shots (none: leave it out).")
    ] = "1,2,5,10,20"
    label_noise: Annotated[
        str, Doc("Shares of support images under interchanged classes, with commas, for the same.")
    ] = "0.2,0.4"
    curve_episodes: Annotated[int, Ge(2), Doc("Meta-test episodes of each point of it.")] = 100
    seed: Seed = 0
    device: Device = "auto"
    workers: Annotated[
        int | None,
        Ge(0),
        Outside(),
        Doc("Threads that share the episodes (0: none; default: one for each core); never changes results."),
    ] = None
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """Options of `leokit analyze`."""

    runs: Annotated[
        tuple[Path, ...], Argument(), Outside(), Doc("Runs to look into (default: as eval finds one).")
    ] = ()
    features: Annotated[Place, Doc("Features of their backbone (default: WORK/features).")] = None
    out: Annotated[Place, Doc("Folder of the result (default: WORK/analysis).")] = None
    ways: Annotated[int | None, Resolved(), Ge(2), Doc("Classes of an episode (N) (default: each run's).")] = None
    shots: Annotated[int | None, Resolved(), Ge(1), Doc("Support images of a class (K) (default: each run's).")] = None
    val_episodes: Annotated[int, Ge(2), Doc("Meta-val episodes whose codes are looked at (Fig. 3).")] = 1000
    test_episodes: Annotated[int, Ge(2), Doc("Meta-test episodes for curvature and steps (Fig. 4).")] = 1000
    perplexity: Annotated[float, Gt(0), Doc("Of t-SNE: how many neighbours a code has, in effect.")] = 30.0
    highlight: Annotated[
        str | None, Doc("A meta-val class to show by itself (default: the one whose silhouette changes most).")
    ] = None
    seed: Seed = 0
    device: Device = "auto"
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


Method = Annotated[
    Literal["auto", "leo", "class-mean", "logistic"],
    Doc(
        "leo is the run's own variant; auto takes whichever was best on meta-val episodes of about as many classes and "
        "shots."
    ),
]
PosteriorSamples = Annotated[
    int, Ge(0), Le(10_000), Doc("Samples of codes and weights to average (leo; 0: their means alone).")
]
StudyEpisodes = Annotated[
    int,
    Ge(20),
    Doc("Meta-val episodes for the choice, the temperature, unknown images and sets; their result is kept."),
]
Support = Annotated[
    Path | None,
    Resolved(),
    Doc(
        "A folder for each class with one image or more, or a CSV file image,label (paths as seen from the file or the "
        "working directory)."
    ),
]
RunPlace = Annotated[Path | None, Resolved(), Doc("The run (default: the only one in WORK/runs).")]
RunFeatures = Annotated[Place, Doc("Features that the run was trained on (default: where they were then).")]
RunWeights = Annotated[
    str | None,
    Outside(),
    Doc("The backbone's weights, where they are no longer where they were: a file, or a folder of leokit pretrain."),
]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Options of `leokit fit`."""

    run: RunPlace = None
    support: Support = None
    class_level: ClassLevel = None
    out: Annotated[Place, Doc("Folder of the classifier (default: WORK/classifier).")] = None
    method: Method = "auto"
    samples: PosteriorSamples = 0
    episodes: StudyEpisodes = 400
    features: RunFeatures = None
    weights: RunWeights = None
    seed: Seed = 0
    device: Device = "auto"
    workers: Workers = None
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Options of `leokit predict`."""

    queries: Annotated[
        tuple[Path, ...],
        Argument(),
        Outside(),
        Doc("Images, folders of images, or - for a list of paths on standard input (default: --query)."),
    ] = ()
    query: Annotated[tuple[Path, ...], Outside(), Doc("The same by an option, which may be given several times.")] = ()
    run: RunPlace = None
    support: Support = None
    class_level: ClassLevel = None
    classifier: Annotated[
        Path | None, Resolved(), Doc("A classifier that leokit fit made, in place of --run and --support.")
    ] = None
    method: Method = "auto"
    samples: PosteriorSamples = 0
    top: Annotated[int, Ge(1), Doc("How many classes to name for an image, the most probable first.")] = 1
    sets: Annotated[
        float | None, Gt(0), Lt(1), Doc("Print prediction sets that hold the right class at this rate on meta-val.")
    ] = None
    unknown_rate: Annotated[
        float,
        Ge(0),
        Lt(1),
        Doc("Share of images of the given classes that may be called unknown, on meta-val (0: call none unknown)."),
    ] = 0.05
    csv: Annotated[Path | None, Outside(), Doc("Write the predictions to this CSV file, too.")] = None
    episodes: StudyEpisodes = 400
    features: RunFeatures = None
    weights: RunWeights = None
    seed: Seed = 0
    device: Device = "auto"
    workers: Workers = None
    work: Work = DEFAULT_WORK


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of `leokit export`."""

    classifier: Annotated[Path | None, Outside(), Doc("A classifier (default: WORK/classifier).")] = None
    onnx: Annotated[Place, Doc("The ONNX file to write, for onnxruntime (default: WORK/classifier.onnx).")] = None
    weights: RunWeights = None
    work: Work = DEFAULT_WORK
    overwrite: Annotated[bool, Outside(), Doc("Replace a file that is there.")] = False


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Options of `leokit table`."""

    number: Annotated[Literal["1", "2"], Argument(), Doc("Which table of the paper: 1 or 2.")]
    evals: Annotated[tuple[Path, ...], Argument(), Outside(), Doc("Evaluations (default: all under WORK/eval).")] = ()
    dataset: Annotated[Literal["miniimagenet", "tieredimagenet"], Doc("Whose published numbers stand beside ours.")] = (
        "miniimagenet"
    )
    out: Annotated[Place, Doc("Folder of the result (default: WORK/tables/tableNUMBER).")] = None
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Options of `leokit report`."""

    format: Annotated[
        Literal["html", "markdown"],
        Outside(),
        Doc("One HTML file with everything in it, or a Markdown file with links to the artifacts' pictures."),
    ] = "html"
    card: Annotated[
        bool,
        Outside(),
        Doc("In place of the page, a run with its model card: a folder that can be published as it is."),
    ] = False
    run: Annotated[Place, Doc("The run of a --card (default: the only one in WORK/runs).")] = None
    license: Annotated[
        str | None,
        Outside(),
        Doc("Licence that a --card states, by the Hub's name for it, as apache-2.0 (default: none)."),
    ] = None
    out: Annotated[
        Place, Doc("The file (default: WORK/report.html or report.md), or the folder of a --card (WORK/card).")
    ] = None
    work: Work = DEFAULT_WORK
    overwrite: Annotated[bool, Outside(), Doc("Replace files that leokit report did not write.")] = False


@dataclass(frozen=True, kw_only=True)
class RegressTrainConfig:
    """Options of `leokit regress train`; sizes, shots, noise and batch are the paper's, the rest is ours."""

    out: Annotated[Place, Doc("Folder of the model (default: WORK/regression).")] = None
    steps: Annotated[int, Ge(1), Doc("Meta-training steps, over which the learning rate falls to 0.")] = 4000
    meta_batch: Annotated[int, Ge(1), Doc("Tasks of a step.")] = 12
    shots: Annotated[int, Ge(1), Le(20), Doc("Noisy points of a task (K).")] = 5
    queries: Annotated[int, Ge(1), Doc("Further points of a task, for the meta-objective.")] = 15
    samples: Annotated[int, Ge(1), Doc("Samples of codes and weights of each task of a step.")] = 4
    objective: Annotated[
        Literal["predictive", "expected"],
        Doc(
            "Of the samples: minus the logarithm of their mean likelihood (samples share out what is possible), or "
            "their mean loss (eq. 6; samples crowd at the mean)."
        ),
    ] = "predictive"
    inner_steps: Annotated[int, Ge(0), Doc("Adaptation steps in latent space.")] = 5
    inner_lr: Annotated[float, Gt(0), Doc("Start of the learned step size in latent space.")] = 0.01
    inner_clip: Annotated[float, Gt(0), Doc("Largest norm of an inner gradient.")] = 10.0
    kl_weight: Annotated[float, Ge(0), Doc("Weight of the code's KL divergence, in nats a task (β).")] = 0.01
    encoder_penalty_weight: Annotated[float, Ge(0), Doc("Weight of the encoder penalty (γ).")] = 0.0
    outer_lr: Annotated[float, Gt(0), Doc("Learning rate of Adam at the start (η).")] = 1e-3
    clip_value: Annotated[float, Gt(0), Doc("Each entry of a gradient is clipped to ± this,")] = 1.0
    clip_norm: Annotated[float, Gt(0), Doc("then each gradient to this norm.")] = 1.0
    seed: Seed = 0
    resume: Resume = True
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


RegressionPlace = Annotated[Path | None, Outside(), Doc("The model (default: WORK/regression).")]
RegressionSamples = Annotated[int, Ge(2), Le(10_000), Doc("Functions that are drawn for each task (S).")]


@dataclass(frozen=True, kw_only=True)
class RegressPlotConfig:
    """Options of `leokit regress plot`."""

    regression: RegressionPlace = None
    out: Annotated[Place, Doc("Folder of the figure and its data (default: WORK/regression-plot).")] = None
    tasks: Annotated[int, Ge(4), Doc("Tasks among which the four panels are chosen: the first ones of the test.")] = (
        1000
    )
    samples: RegressionSamples = 40
    seed: Seed = 0
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class RegressEvalConfig:
    """Options of `leokit regress eval`."""

    regression: RegressionPlace = None
    out: Annotated[Place, Doc("Folder of the result (default: WORK/regression-eval).")] = None
    tasks: Annotated[int, Ge(2), Doc("Tasks drawn from both families alike.")] = 500
    ambiguous: Annotated[
        int, Ge(2), Doc("Further ones: the first whose exact probability of either family is at least 10 %.")
    ] = 100
    queries: Annotated[int, Ge(1), Doc("Points of a task at which predictions are measured.")] = 50
    samples: RegressionSamples = 100
    seed: Seed = 0
    work: Work = DEFAULT_WORK
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class BenchPretrainConfig:
    """Options of `leokit bench pretrain`."""

    backbone: Annotated[str, Doc("As pretrain takes it.")] = PretrainConfig.backbone
    image_size: ImageSize = None
    batch_size: Annotated[int, Ge(2), Doc("Images of a step.")] = 64
    dropout: Annotated[float, Ge(0), Lt(1), Doc("As pretrain takes it.")] = 0.0
    precision: Precision = "float32"
    compile: Annotated[bool, Doc("Compile the model.")] = False
    seconds: Annotated[float, Gt(0), Doc("How long to measure.")] = 20.0
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class BenchMetaTrainConfig:
    """Options of `leokit bench meta-train`."""

    shots: Annotated[int, Ge(1), Doc("Support images of each class (K).")] = 1
    ways: Annotated[int, Ge(2), Le(20), Doc("Classes of an episode (N).")] = 5
    queries: Annotated[int, Ge(1), Doc("Query images of each class.")] = 15
    dim: Annotated[int, Ge(1), Doc("Width of the features (D).")] = 640
    meta_batch: Annotated[int, Ge(1), Doc("Episodes of a step.")] = 12
    rounds: Annotated[int, Ge(1), Doc("Turns that each of the two takes.")] = 5
    seconds: Annotated[float, Gt(0), Doc("Length of a turn.")] = 3.0
    compile: Annotated[bool, Doc("Compile the loss of a step; takes most of a minute first.")] = False
    cuda_graph: CudaGraph = True
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class BenchSearchConfig:
    """Options of `leokit bench search`."""

    classes: Annotated[int, Ge(5), Doc("Meta-train classes of the features that are made up.")] = 351
    per_class: Annotated[int, Ge(16), Doc("Images of each of them.")] = 1300
    dim: Annotated[int, Ge(1), Doc("Width of the features (D).")] = 640
    dtype: Annotated[Literal["float16", "float32"], Doc("Type of the unit rows that trials share.")] = "float32"
    jobs: Annotated[str, Doc("Numbers of trials at a time, with commas.")] = "1,2"
    shots: Annotated[int, Ge(1), Doc("Support images of each class (K).")] = 1
    seconds: Annotated[float, Gt(0), Doc("How long each trial is trained.")] = 20.0
    zeros: Annotated[
        bool, Doc("Rows of zeros in a file with holes, which takes no disk and no time: for memory and steps alone.")
    ] = False
    folder: Annotated[Place, Doc("Where to make the files, for as long as this takes (default: temporary files').")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class BenchSeedsConfig:
    """Options of `leokit bench seeds`."""

    seeds: Annotated[int, Ge(2), Le(1000), Doc("Runs that are trained.")] = 5
    trials: Annotated[
        bool,
        Doc("Runs are trials of a search: of one seed, with numbers drawn from the space published; no processes."),
    ] = False
    shots: Annotated[int, Ge(1), Doc("Support images of each class (K).")] = 1
    ways: Annotated[int, Ge(2), Le(20), Doc("Classes of an episode (N).")] = 5
    queries: Annotated[int, Ge(1), Doc("Query images of each class.")] = 15
    dim: Annotated[int, Ge(1), Doc("Width of the features (D).")] = 640
    meta_batch: Annotated[int, Ge(1), Doc("Episodes of a step.")] = 12
    steps: Annotated[int, Ge(1), Doc("Steps of each run in a turn.")] = 100
    rounds: Annotated[int, Ge(1), Doc("Turns that each way takes.")] = 3
    jobs: Annotated[int | None, Ge(1), Doc("Processes (default: as many as the cores have room for).")] = None
    compile: Annotated[bool, Doc("Compile the loss of a step; takes most of a minute first.")] = False
    cuda_graph: CudaGraph = True
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class BenchEvalConfig:
    """Options of `leokit bench eval`."""

    shots: Annotated[int, Ge(1), Doc("Support images of each class (K).")] = 1
    ways: Annotated[int, Ge(2), Le(20), Doc("Classes of an episode (N).")] = 5
    queries: Annotated[str, Doc("Query images of each class: a number, rest600, or all.")] = "all"
    dim: Annotated[int, Ge(1), Doc("Width of the features (D).")] = 640
    episodes: Annotated[int, Ge(2), Doc("Episodes that are scored at a time.")] = 1000
    rounds: Annotated[int, Ge(1), Doc("Turns that each of the two takes.")] = 5
    seconds: Annotated[float, Gt(0), Doc("Length of a turn.")] = 3.0
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class BenchUncertaintyConfig:
    """Options of `leokit bench uncertainty`."""

    shots: Annotated[int, Ge(1), Doc("Support images of each class (K).")] = 1
    ways: Annotated[int, Ge(2), Le(19), Doc("Classes of an episode (N).")] = 5
    queries: Annotated[int, Ge(1), Doc("Query images of each class, and as many of outside classes.")] = 15
    dim: Annotated[int, Ge(1), Doc("Width of the features (D).")] = 640
    samples: Annotated[int, Ge(2), Doc("Samples of codes and weights (S), each adapted.")] = 100
    episodes: Annotated[int, Ge(2), Doc("Episodes that are predicted at a time.")] = 100
    rounds: Annotated[int, Ge(1), Doc("Turns that each of the two takes.")] = 5
    seconds: Annotated[float, Gt(0), Doc("Length of a turn.")] = 3.0
    device: Device = "auto"


StageConfig = TypeVar(
    "StageConfig",
    BenchExtractConfig,
    BenchReadConfig,
    DemoConfig,
    ExtractConfig,
    PretrainConfig,
    ImportConfig,
    InspectConfig,
    VerifyConfig,
    SplitsListConfig,
    SplitsShowConfig,
    SplitsCheckConfig,
    MetaTrainConfig,
    SearchConfig,
    EvalConfig,
    UncertaintyConfig,
    AnalyzeConfig,
    FitConfig,
    PredictConfig,
    ExportConfig,
    TableConfig,
    ReportConfig,
    RegressTrainConfig,
    RegressPlotConfig,
    RegressEvalConfig,
    BenchPretrainConfig,
    BenchMetaTrainConfig,
    BenchSearchConfig,
    BenchSeedsConfig,
    BenchEvalConfig,
    BenchUncertaintyConfig,
)


@dataclass(frozen=True)
class FieldInfo:
    """A configuration field as the command line, the documentation and the manifest need it."""

    name: str
    type: Any  # without the markers
    default: Any  # MISSING where the field is required
    help: str
    outside: bool
    resolved: bool
    argument: bool


def describe(config: type) -> list[FieldInfo]:
    """The fields of a configuration class, in order."""
    hints = get_type_hints(config, include_extras=True)
    described = []
    for entry in fields(config):
        kind, *markers = get_args(hints[entry.name])
        docs = [marker.documentation for marker in markers if isinstance(marker, Doc)]
        described.append(
            FieldInfo(
                name=entry.name,
                type=kind,
                default=entry.default if entry.default is not MISSING else MISSING,
                help=docs[-1],
                outside=any(isinstance(marker, Outside) for marker in markers),
                resolved=any(isinstance(marker, Resolved) for marker in markers),
                argument=any(isinstance(marker, Argument) for marker in markers),
            )
        )
    return described


def identity(config: Any) -> dict[str, Any]:
    """The part of a configuration that can change results, as plain data: what an artifact's id is made from."""
    inside = {entry.name for entry in describe(type(config)) if not entry.outside}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(config).items()
        if key in inside
    }


def build(kind: type[StageConfig], values: Mapping[str, Any]) -> StageConfig:
    """A checked configuration of class `kind` from plain values; what is absent takes its default.

    Raises:
        UsageError: an unknown key, or a value of the wrong type or out of its range.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    known = [entry.name for entry in fields(kind)]
    for key in values:
        if key not in known:
            raise UsageError(f"Unknown key {key!r}: the keys here are {', '.join(known)}.")
    if isinstance(values.get("backbone"), str):
        values = {**values, "backbone": without_hub(values["backbone"])}
    strict = ConfigDict(extra="forbid", allow_inf_nan=False)
    with_config(strict)(kind)
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        found = f"{name} = {values[name]!r}" if name in values else f"{name} is missing"
        raise UsageError(f"{found}: it must be {_allowed(kind, name, values.get(name))}.") from error


def _allowed(kind: type, name: str, value: Any) -> str:
    """What a field takes, in words; `value` is what it did not take."""
    annotation, *markers = get_args(get_type_hints(kind, include_extras=True)[name])
    options = [part for part in get_args(annotation) if part is not type(None)] if _is_union(annotation) else []
    return " or ".join(_in_words(part, markers, value) for part in options or [annotation])


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def _in_words(annotation: Any, markers: list[Any], value: Any) -> str:
    """A type in words, numbers with their limits."""
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) is tuple:
        part, *others = get_args(annotation)
        listed = "a list of" if Ellipsis in others else f"{1 + len(others)}"
        return f"{listed} {'paths' if part is Path else 'numbers'}"
    if annotation not in (int, float):
        return {bool: "true or false", Path: "a path"}.get(annotation, "a text")
    limits = {type(marker): astuple(marker)[0] for marker in markers if isinstance(marker, _LIMITS)}
    if annotation is float:
        finite = "a finite number" if isinstance(value, float) and not isfinite(value) else "a number"
        words = {Gt: "above", Ge: "of at least", Lt: "below", Le: "of at most"}
        return " ".join(
            [finite, " and ".join(f"{words[limit]} {number:g}" for limit, number in limits.items())]
        ).strip()
    low = limits.get(Ge, limits.get(Gt, -inf) + 1)
    high = limits.get(Le, limits.get(Lt, inf) - 1)
    return f"a whole number from {low} to {high}" if high < inf else f"a whole number of {low} or more"


def read_toml(path: Path, command: str) -> dict[str, Any]:
    """The values for `command` in a TOML file: its table of that name, or the whole file where it has no tables.

    Raises:
        UsageError: no such file, or not TOML.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The config file {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The config file {path} is no TOML: {error}.") from error
    tables = [key for key, value in data.items() if isinstance(value, dict)]
    if tables and len(tables) < len(data):
        loose = next(key for key in data if key not in tables)
        raise UsageError(f"{path}: the key {loose!r} stands outside of the tables: put it into [{command}].")
    unknown = [name for name in tables if name not in COMMANDS]
    if unknown:
        raise UsageError(f"{path}: unknown table [{unknown[0]}]; a table is one of {', '.join(COMMANDS)}.")
    data = data.get(command, {}) if tables else data
    return {key.replace("-", "_"): value for key, value in data.items()}


def to_toml(values: Mapping[str, Any]) -> str:
    """Plain values as TOML, which has no way to say None: such keys are left out."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float() | int():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(_toml_value(item) for item in value)}]"
        case _:
            return _toml_string(str(value))


def _toml_string(text: str) -> str:
    """A text in quotes, what is not printable escaped; unlike JSON, TOML has no surrogate pairs and no bare DEL."""
    return "".join(
        character if character.isprintable() else f"\\U{ord(character):08x}"
        for character in json.dumps(text, ensure_ascii=False)
    )


def parse_share(text: str) -> Callable[[int], int]:
    """How many of a number of images `--max-failures` allows to fail.

    Args:
        text: a number as `10`, or a share as `1%`.

    Example:
        >>> parse_share("1%")(60_000)
        600

    Raises:
        UsageError: neither, or out of range.
    """
    try:
        value = Decimal(text.removesuffix("%"))
    except InvalidOperation:
        value = Decimal(-1)
    share = text.endswith("%")
    if not value.is_finite() or not 0 <= value <= (100 if share else 2**63) or (not share and value != int(value)):
        raise UsageError(f"max_failures = {text!r}: a number of images from 0, or a share from 0% to 100%.")
    return lambda total: int(value * total / 100) if share else int(value)


def run_name(config: MetaTrainConfig) -> str:
    """The folder of a run under `runs/`: variant, ways, shots, the seed where it is not 0, and training on val."""
    suffix = f"-seed{config.seed}" if config.seed else ""
    suffix += "-trainval" if config.train_on_val else ""
    return f"{config.variant}-{config.ways}way-{config.shots}shot{suffix}"


def training_splits(config: MetaTrainConfig) -> tuple[str, ...]:
    """The splits whose classes a run is meta-trained on."""
    return ("train", "val") if config.train_on_val else ("train",)


def has_posterior(config: MetaTrainConfig) -> bool:
    """Whether a run is trained with samples of codes and weights, so that samples can be drawn when it is used."""
    return config.sampling and config.variant not in ("deterministic", "random-prior", "meta-sgd")


def adapts_codes(config: MetaTrainConfig) -> bool:
    """Whether a run has codes and a latent loop that adapts them."""
    return config.inner_steps > 0 and config.variant not in ("generator", "generator-finetuning", "meta-sgd")


def fixed_steps(config: MetaTrainConfig) -> int:
    """The number of meta-training steps of a run that takes it from no other: `steps`, else the default.

    Raises:
        UsageError: the default is asked for, but there will be no validation that could select among so many steps.
    """
    if config.steps is not None:
        return config.steps
    if config.train_on_val:
        raise UsageError(
            "--train-on-val leaves no classes to select weights on, so the steps must be known beforehand: give "
            "--steps-from RUN, a run of the same options without --train-on-val, or --steps N."
        )
    return DEFAULT_STEPS


def check_together(config: MetaTrainConfig) -> None:
    """Check options that must go together: how long to train, the variant with its sampling, and the seeds.

    Raises:
        UsageError: two of them contradict each other, or none says how long.
    """
    if config.seed + config.seeds > 2**63:
        raise UsageError(f"--seed {config.seed} with --seeds {config.seeds}: the last seed is at most {2**63 - 1}.")
    if config.jobs is not None and config.parallel in ("batched", "none"):
        raise UsageError(
            f"--jobs {config.jobs} with --parallel {config.parallel}: no processes are started then; leave one out."
        )
    if config.variant == "random-prior" and not config.sampling:
        raise UsageError("--variant random-prior with --no-sampling: its codes are draws; leave one of them out.")
    if config.steps_from is None:
        fixed_steps(config)
    elif config.steps is not None:
        raise UsageError(
            f"--steps {config.steps} and --steps-from {config.steps_from} both say how many steps: give one of them."
        )
    if config.train_on_val and config.patience is not None:
        raise UsageError(
            f"--patience {config.patience} waits for validations, and --train-on-val leaves no classes for them: give "
            "one of them."
        )


def read_numbers(option: str, text: str, kind: type[Number], low: float, high: float) -> list[Number]:
    """The numbers in a list with commas, or `none`, in rising order, each once.

    Raises:
        UsageError: something that is no number, or one outside of `low` to `high`.
    """
    numbers = set()
    for part in text.split(",") if text.strip() != "none" else []:
        try:
            value = kind(part)
        except ValueError:
            value = kind(low - 1)
        if not low <= value <= high:
            raise UsageError(f"{option} {visible(text)}: {part.strip()!r} is no number from {low:g} to {high:g}.")
        numbers.add(value)
    return sorted(numbers)


METHODS = ("class-mean", "centred-class-mean", "ridge", "logistic")


def read_methods(text: str) -> list[str]:
    """The names in `--methods`, in order, each once.

    Raises:
        UsageError: an unknown name.
    """
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in METHODS:
            raise UsageError(f"Unknown method {name!r} in --methods: there are {', '.join(METHODS)}.")
    return names


PRESETS = ("miniimagenet-1shot", "miniimagenet-5shot", "tieredimagenet-1shot", "tieredimagenet-5shot", "own-images")


def read_preset(name: str) -> dict[str, Any]:
    """The values of a preset for `meta-train`.

    Raises:
        UsageError: no preset of that name.
    """
    if name not in PRESETS:
        raise UsageError(f"Unknown preset {name!r}: there are {', '.join(PRESETS)}.")
    return tomllib.loads((files("leokit") / "presets" / f"{name}.toml").read_text(encoding="utf-8"))


def with_preset(values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The values of a meta-training over those of its preset, where none is named of the one nearest to its shots.

    Returns:
        The values, and a sentence on the preset where it was not named.

    Raises:
        UsageError: no preset of that name, or a value of the wrong type.
    """
    preset, sentence = values.get("preset"), ""
    if preset is None:
        shots = build(MetaTrainConfig, values).shots
        preset = nearest_preset(shots)
        sentence = f"Hyper-parameters from the preset {preset}, the nearest to {shots} shot{'s'[: shots != 1]}."
    whole = {**yielding(read_preset(str(preset)), values), **values, "preset": preset}
    if not values.get("steps_from") and not values.get("train_on_val"):
        whole.setdefault("steps", DEFAULT_STEPS)
    return whole, sentence


def yielding(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a preset or file, without steps and patience where what ranks before says how long to train."""
    left_out = {"steps"} if given.get("steps_from") else set()
    left_out |= {"patience"} if given.get("train_on_val") else set()
    return {key: value for key, value in values.items() if key not in left_out}


SPACES = ("published", "own-images")


def read_space(name: str) -> dict[str, Any]:
    """What a search space says, by option: a ready one by its name, else a TOML file.

    Raises:
        UsageError: no such file, or not TOML.
    """
    if name in SPACES:
        return tomllib.loads((files("leokit") / "presets" / f"search-{name}.toml").read_text(encoding="utf-8"))
    try:
        data = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"--space {name}: neither a ready space ({', '.join(SPACES)}) nor a file that can be read "
            f"({error.strerror})."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The search space {name} is no TOML: {error}.") from error
    return {key.replace("-", "_"): value for key, value in data.items()}


def without_hub(backbone: str) -> str:
    """The name of a backbone without the Hub's place of it, as `timm/resnet50.a1_in1k` and `hf-hub:timm/...` have."""
    found = _HUB.match(backbone)
    return backbone[found.end() :] if found else backbone


def is_wide_resnet(backbone: str) -> bool:
    """Whether a backbone is one of leokit's own, by its name."""
    return re.fullmatch(r"wrn\d+_\d+", backbone) is not None


def check_weights(backbone: str, weights: str) -> None:
    """Refuse weights that are none.

    Raises:
        UsageError: bundled ones, of a backbone that has none.
        ArtifactError: a file that is not there.
    """
    if weights == "bundled" and backbone.partition(".")[0] != BUNDLED:
        raise UsageError(f"weights = 'bundled': there are such weights for {BUNDLED} only, not for {backbone}.")
    if weights not in ("auto", "bundled", "pretrained", "random") and not Path(weights).is_file():
        raise ArtifactError(
            f"There is no weights file {weights}: "
            "--weights is auto, bundled, pretrained, or a safetensors or torch file."
        )


def require_support(support: Path | None) -> None:
    """Refuse to make a classifier of nothing.

    Raises:
        UsageError: no support set is named.
    """
    if support is None:
        raise UsageError("No support set: give --support, a folder with one folder of images per class, or a CSV file.")


def nearest_preset(shots: int) -> str:
    """The miniImageNet preset nearest to a number of shots: that of 1 shot up to 2, else that of 5."""
    return "miniimagenet-1shot" if shots <= 2 else "miniimagenet-5shot"


def default_workers() -> int:
    """One worker for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
