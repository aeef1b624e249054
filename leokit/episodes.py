"""Which rows of a feature matrix make episode i, and gathering them.

Episode i is a function of (the split's ordered classes and images, ways, seed, purpose, i) and of nothing else. Its
classes are the first of a permutation of all classes; the support images of a class are the first of a permutation of
its images and the queries come from that permutation's other end. So other shots or queries keep the rest of the
episode, and batches, devices and resuming change nothing. A permutation is an order by random integer keys, computed in
integer arithmetic that is the same on every device.
"""

import copy
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from leokit import randomness
from leokit.config import MetaTrainConfig
from leokit.errors import DataError, UsageError
from leokit.features import FeatureTable

REST = 600  # images of a class that the reference's protocol uses: K for support, the rest for queries
_POSITION_BITS = 20  # lowest bits of a key hold the position, so that no two keys are equal
_LARGEST = 2**63 - 1
_NORMALISED_ROWS = 4096  # rows that are normalised at a time
_KEYS = 2**22  # keys of images that are drawn at a time


class Rows(NamedTuple):
    """The rows of a batch of episodes."""

    classes: Tensor  # (B, N) int64, numbers of classes
    support: Tensor  # (B, N, K) int64, rows of the feature matrix
    query: Tensor  # (B, N, Q) int64, likewise


class MatrixArrays(NamedTuple):
    """A `FeatureMatrix` as arrays."""

    rows: NDArray[np.floating[Any]]  # (n, D), unit rows as they are held
    offsets: NDArray[np.int64]  # (C+1,)
    classes: tuple[str, ...]
    dtype: str  # of the computation, as float32


class FeatureMatrix:
    """The features of a split on a device: unit rows, sorted by class.

    Attributes:
        rows: (n, D), each divided by its L2 norm, as LEO takes them (DeepMind's code, data.py), as they are held;
            `take` gives them in `dtype`.
        dtype: of the computation.
        classes: names of the classes, in order.
        offsets: (C+1,) int64; class c has the rows from `offsets[c]` to `offsets[c + 1]`.
    """

    def __init__(
        self,
        table: FeatureTable,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        held: torch.dtype | None = None,
    ) -> None:
        """Normalise a table's rows, in `dtype`, on `device`, and hold them as `held` (default: as `dtype`).

        Raises:
            DataError: a feature is not finite, or so large that the row would become one of zeros.
        """
        rows = torch.empty(table.embeddings.shape, device=device, dtype=held or dtype)
        finite = torch.ones(len(rows), device=device, dtype=torch.bool)
        self.dtype = dtype
        for start in range(0, len(rows), _NORMALISED_ROWS):
            block = torch.tensor(table.embeddings[start : start + _NORMALISED_ROWS], device=device, dtype=dtype)
            # As tf.nn.l2_normalize: a row of zeros stays zero.
            squares = block.square().sum(1, keepdim=True)
            finite[start : start + len(block)] = squares.isfinite().squeeze(1)
            rows[start : start + len(block)] = block * squares.clamp_min(1e-12).rsqrt()
        self.rows = rows
        self.classes = table.classes
        self.offsets = torch.from_numpy(np.asarray(table.offsets, dtype=np.int64)).to(device)
        if not finite.all():
            row = int(finite.logical_not().nonzero()[0])
            number = int(torch.searchsorted(self.offsets, row, right=True)) - 1
            raise DataError(
                f"Image {row - int(self.offsets[number])} of class {self.classes[number]!r} has a feature that is "
                f"not finite, or too large for its square to be a {dtype}: extract the features again."
            )

    @classmethod
    def of_rows(
        cls, rows: Tensor, classes: list[str], offsets: NDArray[np.int64], *, dtype: torch.dtype = torch.float32
    ) -> Self:
        """A matrix of rows (n, D) that another one has normalised and looked through: they are neither copied nor read.

        Args:
            rows: as `rows` of that matrix; on any device, or mapped from a file.
            classes: names of the C classes.
            offsets: (C+1,).
            dtype: of the computation.
        """
        made = cls.__new__(cls)
        made.rows, made.dtype, made.classes = rows, dtype, classes
        made.offsets = torch.from_numpy(np.array(offsets, dtype=np.int64)).to(rows.device)
        return made

    def arrays(self) -> "MatrixArrays":
        """The same as arrays, without a copy, which processes can share; on the CPU."""
        return MatrixArrays(self.rows.numpy(), self.offsets.numpy(), tuple(self.classes), str(self.dtype)[6:])

    @classmethod
    def of(cls, arrays: "MatrixArrays") -> "FeatureMatrix":
        """The matrix that `arrays` gave, on the same memory, which may be read-only."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            rows = torch.from_numpy(arrays.rows)
        return cls.of_rows(rows, list(arrays.classes), arrays.offsets, dtype=getattr(torch, arrays.dtype))

    def centred(self, mean: Tensor) -> "FeatureMatrix":
        """The same classes with rows moved by -`mean` (D,) and normalised again."""
        moved = copy.copy(self)
        moved.rows = torch.empty_like(self.rows)
        for start in range(0, len(self.rows), _NORMALISED_ROWS):
            block = slice(start, start + _NORMALISED_ROWS)
            moved.rows[block] = normalize(self.take(block) - mean.to(self.rows.device, self.dtype), dim=1)
        return moved

    def take(self, chosen: Tensor | slice) -> Tensor:
        """Rows by number (...) or a span of them, as (..., D) of type `dtype`."""
        return self.rows[chosen].to(self.dtype)

    def mean(self) -> Tensor:
        """Mean (D,) of all rows."""
        return self.rows.mean(0, dtype=self.dtype)

    @property
    def dim(self) -> int:
        """D, the number of features."""
        return self.rows.shape[1]

    @property
    def counts(self) -> Tensor:
        """(C,) int64, images of each class."""
        return self.offsets.diff()


Types = tuple[torch.dtype, torch.dtype | None]


def types_of(config: MetaTrainConfig) -> Types:
    """The types that a run's features are computed with and held as: `dtype` and `held` of `FeatureMatrix`."""
    held: torch.dtype | None = getattr(torch, config.hold_as) if config.hold_as else None
    return getattr(torch, config.dtype), held


class EpisodeSampler:
    """Episodes over the classes of a split, by number."""

    def __init__(self, offsets: Tensor, *, ways: int, seed: int, purpose: str) -> None:
        """Sample over classes whose rows are divided by `offsets` (C+1,), on the device of `offsets`.

        Args:
            offsets: (C+1,) int64, see `FeatureMatrix`.
            ways: N.
            seed: of the draws.
            purpose: keeps streams apart that share a seed, such as training and selection.
        """
        self.offsets = offsets
        self.counts = offsets.diff()
        self.longest = int(self.counts.max())
        self.ways = ways
        self.root = randomness.integer_key(seed, purpose)
        self._roots = torch.tensor(self.root, device=offsets.device)

    def draw(self, numbers: range | Tensor, *, shots: int, queries: int) -> Rows:
        """The episodes of the given numbers.

        Args:
            numbers: which episodes, B of them; a tensor (B,) int64 is not looked at by the host.
            shots: K.
            queries: Q; K + Q images must be there in every class, see `require_enough`.
        """
        at_once = max(1, _KEYS // (self._roots.numel() * self.ways * self.longest))
        if len(numbers) > at_once:
            parts = [
                self.draw(numbers[start : start + at_once], shots=shots, queries=queries)
                for start in range(0, len(numbers), at_once)
            ]
            return Rows(*(torch.cat(values, dim=self._roots.ndim // 2) for values in zip(*parts, strict=True)))
        classes, order_keys = self._keys(numbers)
        start = self.offsets[classes].unsqueeze(-1)
        support = _positions(order_keys.topk(shots, dim=-1, largest=False).values)
        outside = torch.arange(self.longest, device=start.device) >= self.counts[classes].unsqueeze(-1)
        query = _positions(order_keys.masked_fill_(outside, -1).topk(queries, dim=-1).values)
        return Rows(classes, start + support, start + query)

    def _keys(self, numbers: range | Tensor) -> tuple[Tensor, Tensor]:
        """Classes (B, N) of the episodes and, for each, a key for every image (B, N, longest)."""
        device = self.offsets.device
        indices = torch.arange(numbers.start, numbers.stop, device=device) if isinstance(numbers, range) else numbers
        episodes = randomness.keys(self._roots, indices)  # (B,)
        class_keys = _ordered_keys(episodes, len(self.counts))  # (B, C)
        classes = _positions(class_keys.topk(self.ways, dim=-1, largest=False).values)  # (B, N)
        image_keys = _ordered_keys(randomness.keys(episodes.unsqueeze(-1), classes), self.longest)
        outside = torch.arange(self.longest, device=device) >= self.counts[classes].unsqueeze(-1)
        return classes, image_keys.masked_fill_(outside, _LARGEST)


class SeveralSeeds(EpisodeSampler):
    """The episodes of several seeds at once: what `draw` gives has a first dimension S more, of the seeds."""

    def __init__(self, offsets: Tensor, *, ways: int, seeds: Sequence[int], purpose: str) -> None:
        """As `EpisodeSampler`; `root` is that of the first seed."""
        super().__init__(offsets, ways=ways, seed=seeds[0], purpose=purpose)
        roots = [[randomness.integer_key(seed, purpose)] for seed in seeds]
        self._roots = torch.tensor(roots, device=offsets.device)  # (S, 1), beside (B,)


def _ordered_keys(parents: Tensor, count: int) -> Tensor:
    """Keys (..., count) whose order is a random permutation; each holds its own position in its lowest bits."""
    # Numbers of children start high, so that no key of an image is that of a class.
    positions = torch.arange(count, device=parents.device)
    hashed = randomness.keys(parents.unsqueeze(-1), positions + 2**40)
    ordered: Tensor = (hashed & (_LARGEST - (2**_POSITION_BITS - 1))) | positions
    return ordered


def _positions(keys: Tensor) -> Tensor:
    positions: Tensor = keys & (2**_POSITION_BITS - 1)
    return positions


def query_count(queries: str, shots: int) -> int | None:
    """Q for `--queries`: a number, `rest600` (600 - K), or `all` (None: all other images of a class).

    Raises:
        UsageError: anything else.
    """
    if queries == "all":
        return None
    if queries == "rest600":
        if shots >= REST:
            raise UsageError(f"rest600 leaves no query for {shots} shots: use fewer than {REST}, or --queries 15.")
        return REST - shots
    if queries.isdecimal() and int(queries) >= 1:
        return int(queries)
    raise UsageError(f"--queries {queries}: it is a number from 1 up, rest600 or all.")


def require_enough(
    classes: Sequence[str],
    counts: NDArray[np.int64],
    *,
    split: str,
    ways: int,
    shots: int,
    queries: int | None,
    options: str = "--shots or --queries",
    ways_option: str = "--ways",
    leave_out: str = "leave such classes out",
) -> None:
    """Check that every episode of the given size can be made.

    Args:
        classes, counts: of the split.
        split: its name.
        ways, shots, queries: of an episode; queries None: all other images of a class.
        options, ways_option: that would make it smaller.
        leave_out: what else to do about classes with too few images.

    Raises:
        DataError: too few classes, or a class with too few images, named with its count.
    """
    if len(classes) < ways:
        raise DataError(
            f"The {split} split has {len(classes)} classes, {ways}-way episodes need {ways}: lower {ways_option}."
        )
    needed = shots + (1 if queries is None else queries)
    short = [number for number, count in enumerate(counts) if count < needed]
    if short:
        first = short[0]
        others = f" ({len(short) - 1} more classes have too few)" if len(short) > 1 else ""
        options = options.removeprefix("--shots or ") if shots == 1 else options
        lower = f"lower {options}, or " if min(counts) > 1 else ""  # no episode is made of one image
        raise DataError(
            f"Class {classes[first]!r} of the {split} split has {counts[first]} images, but {shots} shots + "
            f"{needed - shots} queries need {needed}{others}: {lower}{leave_out}."
        )
    if max(counts) >= 2**_POSITION_BITS:
        raise DataError(f"A class has {max(counts)} images; at most {2**_POSITION_BITS - 1} are supported.")


def all_as_support(matrix: FeatureMatrix) -> tuple[Tensor, Tensor | None]:
    """All rows of a matrix as the support set of one episode, whose classes may have different numbers of images.

    Equal rows of a class are one row of a larger share: giving every image of a class twice changes nothing, to the
    bit. Classes with fewer rows than others fill up with rows of zeros, of share 0.

    Returns:
        The rows (1, N, K, D), K those of the largest class, and their shares (1, N, K), of sum 1 for each class; None
        for the shares where all are 1/K.
    """
    distinct = []
    for start, stop in pairwise(matrix.offsets.tolist()):
        places: dict[bytes, list[int]] = {}
        for row in range(start, stop):
            places.setdefault(matrix.rows[row].cpu().numpy().tobytes(), []).append(row)
        distinct.append([(same[0], len(same)) for same in places.values()])
    longest = max(map(len, distinct))
    if all(len(of_class) == longest and len({count for _, count in of_class}) == 1 for of_class in distinct):
        return matrix.take(torch.tensor([[row for row, _ in of_class] for of_class in distinct])).unsqueeze(0), None
    support = torch.zeros(1, len(distinct), longest, matrix.dim, dtype=matrix.dtype, device=matrix.rows.device)
    shares = torch.zeros(1, len(distinct), longest, dtype=torch.float64)
    for number, of_class in enumerate(distinct):
        rows, counts = (torch.tensor(values) for values in zip(*of_class, strict=True))
        support[0, number, : len(rows)] = matrix.take(rows)
        shares[0, number, : len(rows)] = counts / counts.sum()
    return support, shares.to(support)
