"""The episodes of a step divided among the ranks of a job, which average their gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leokit.distributed import Job, World, rank_errors
from leokit.errors import UsageError

_AGREE_EVERY = 10  # steps between the ranks' agreements on whether to stop


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one run together; alone, everything is its own.

    Attributes:
        place: of this process.
        job: all of them.
    """

    place: World = field(default_factory=World)
    job: Job = field(default_factory=Job)

    @property
    def size(self) -> int:
        """How many there are."""
        return self.place.size

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which reports, keeps and writes."""
        return self.place.rank == 0

    def tasks(self, count: int) -> range:
        """Which of the `count` episodes of a step are this rank's: consecutive ones, as many as others or one more.

        Raises:
            UsageError: there are fewer episodes than ranks.
        """
        rank, size = self.place.rank, self.place.size
        if count < size:
            raise UsageError(
                f"meta_batch = {count} on {size} ranks: each takes one episode of a step at least. Start no more than "
                f"{count} ranks, or give a larger --meta-batch."
            )
        return range(rank * count // size, (rank + 1) * count // size)

    def weighted_sum(self, values: Sequence[Tensor], share: float) -> list[Tensor]:
        """The sums over ranks of tensors of one type, each rank's times its share; the same bits on every rank.

        Means over this rank's episodes with its share of all episodes become means over all of them.

        Raises:
            LeokitError: another rank has ended.
        """
        if self.size == 1:
            return list(values)
        import torch.distributed as group

        flat = torch.cat([value.reshape(-1) for value in values]).mul_(share)
        with rank_errors("The last state that was kept is whole: the same command goes on from there."):
            group.all_reduce(flat, group=self.job.steps)
        parts = torch.split(flat, [value.numel() for value in values])
        return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]

    def agreed(self, stop: bool, step: int) -> bool:
        """Whether to stop after a step: alone where it is asked, on several ranks where any is asked, now and then.

        Raises:
            LeokitError: another rank has ended.
        """
        if self.size == 1:
            return stop
        return step % _AGREE_EVERY == 0 and any(self.job.gather(stop))


ALONE = Ranks()
