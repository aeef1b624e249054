"""The steps of pre-training: resuming, parts of a batch, ranks, and where images come from change nothing."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from leokit import randomness
from leokit.backbones import Layers, preprocessing_of
from leokit.backbones.training import make_schedule, new_network
from leokit.config import PretrainConfig
from leokit.distributed import Job, World
from leokit.engine.pixels import FromDisk, InMemory, available_memory
from leokit.engine.pretraining import Labelled, Trainer, memory_errors
from leokit.engine.ranks import SharedDropout, share_over_ranks
from leokit.engine.steps import Diverged
from leokit.errors import DataError, LeokitError, UsageError
from leokit.images.augmentation import Recipe, augment, draw
from leokit.images.decoding import Decoded
from leokit.stages.pretrain import _spread

CONFIG = PretrainConfig(
    images="unused",
    backbone="wrn10_1",
    image_size=16,
    epochs=3,
    batch_size=8,
    lr=0.05,
    val_episodes=20,
    val_ways=3,
    val_queries=3,
    val_shots=2,
)
CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
TONES = RNG.integers(0, 255, (5, 1, 1, 1, 3))
PIXELS = torch.from_numpy((0.7 * TONES + 0.3 * RNG.integers(0, 255, (5, 8, 18, 18, 3))).reshape(40, 18, 18, 3)).byte()
LABELS = np.repeat(np.arange(5), 8)
TRAINING = Labelled(InMemory(PIXELS), LABELS, tuple("abcde"))


def trainer(config=CONFIG, training=TRAINING, place=None):
    network = new_network(
        config.backbone,
        5,
        image_size=16,
        dropout=config.dropout,
        rotation=config.rotation_weight > 0,
        seed=config.seed,
    )
    recipe = Recipe(size=16, rotation=config.rotation_weight > 0)
    preprocessing = preprocessing_of(network.backbone, 16)
    place = place or World()
    options = {"recipe": recipe, "preprocessing": preprocessing, "device": CPU, "place": place, "job": Job()}
    return Trainer(config, network, training, **options)


def taken(made, steps):
    for _ in range(steps):
        made.take()
    return made


def weights(made):
    return {name: value.clone() for name, value in made.pack()[0].items()}


def assert_same(first, second):
    ours, theirs = first.pack(), second.pack()
    assert ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys()
    for name, value in ours[0].items():
        assert torch.equal(value, theirs[0][name]), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": 0.3, "rotation_weight": 0.5, "label_smoothing": 0.1},
        {"ema": 0.9, "accumulate": 2, "schedule": "step", "decay_epochs": 1, "warmup_epochs": 1},
        {"optimizer": "adamw", "precision": "bfloat16", "lr": 1e-3},
    ],
    ids=["plain", "regularised", "averaged", "adamw"],
)
@pytest.mark.parametrize("cut", [1, 5, 7])
def test_resuming_is_no_interruption(changes, cut):
    config = replace(CONFIG, **changes)
    whole, first = taken(trainer(config), 9), taken(trainer(config), cut)
    first.consider(0.3, 0.1, "pooled")
    whole.progress = replace(whole.progress, **{key: getattr(first.progress, key) for key in BEST})
    second = trainer(config)
    second.unpack(*first.pack())
    assert_same(taken(second, 9 - cut), whole)


BEST = ("best", "best_epoch", "best_layer", "best_accuracy", "best_half_width")


def test_it_learns_and_an_epoch_is_every_image_once():
    made = trainer(replace(CONFIG, epochs=20))
    losses = [taken(made, made.steps_of_epoch).line()["loss"] for _ in range(12)]
    assert losses[-1] < 0.6 * losses[0]
    assert sorted(made.order(3).tolist()) == list(range(40))
    assert made.order(3).tolist() != made.order(4).tolist()
    shares = [made._share(2, 0)[1] for _ in range(1)]
    assert shares[0].tolist() == made.order(0)[16:24].tolist()


def test_images_from_disk_are_those_in_memory():
    def decode(blocks):
        for block in blocks:
            yield Decoded(PIXELS[[int(name) for name in block]].numpy(), {})

    disk = Labelled(FromDisk([str(number) for number in range(40)], decode, CPU), LABELS, tuple("abcde"))
    assert_same(taken(trainer(training=disk), 6), taken(trainer(), 6))


def test_an_unreadable_image_that_is_decoded_anew_is_an_error():
    def decode(blocks):
        for block in blocks:
            yield Decoded(np.zeros((len(block), 18, 18, 3), np.uint8), {0: "truncated"})

    disk = Labelled(FromDisk([str(number) for number in range(40)], decode, CPU), LABELS, tuple("abcde"))
    made = trainer(training=disk)
    with pytest.raises(DataError, match=rf"The image {made.order(0)[0]} cannot be read.*truncated.*goes on from there"):
        made.take()


def test_without_batch_norm_in_the_way_parts_are_the_whole_batch():
    """Batch norm sees a part at a time; with its averages fixed, accumulated parts give the same gradient."""
    whole, parts = (trainer(replace(CONFIG, accumulate=count)) for count in (1, 4))
    for made in (whole, parts):
        made.network.train = partial(torch.nn.Module.train, made.network, False)
        taken(made, 3)
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(parts)[name], rtol=1e-4, atol=1e-6, msg=name)


def test_dropout_of_a_rank_is_its_part_of_the_whole():
    values = torch.ones(6, 4, 5, 5)

    def dropped(rank, size):
        layer = SharedDropout(0.5)
        layer.rank, layer.size = rank, size
        torch.manual_seed(1)
        return layer(values[: 6 // size])

    whole = dropped(0, 1)
    assert torch.equal(torch.cat([dropped(rank, 3) for rank in range(3)]), whole)
    assert {0.0, 2.0} == set(whole.unique().tolist())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 10, "accumulate": 4}, "multiple of --accumulate 4"),
        ({"batch_size": 64}, "there are 40 images"),
        ({"optimizer": "unheard-of"}, "timm cannot make it"),
        ({"backbone": "wrn11_1"}, "Unknown backbone"),
    ],
)
def test_options_that_do_not_go_together(changes, said):
    with pytest.raises(UsageError, match=said):
        trainer(replace(CONFIG, **changes))


def test_a_loss_that_is_not_finite_changes_nothing():
    made = taken(trainer(), 2)
    before = weights(made)
    made._loss = lambda logits, labels: logits.sum() * torch.nan
    with pytest.raises(Diverged, match=r"not finite at step 2 \(epoch 1\)"):
        made.take()
    trained = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], weights(made)[name]) for name in trained)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_helps(error):
    made = trainer(replace(CONFIG, batch_size=12, accumulate=2))

    def fail(images):
        raise error

    made._forward = fail
    with pytest.raises(LeokitError, match=r"Out of memory on cpu at batch size 12 in 2 parts.*--accumulate 3 \("):
        made.take()


def test_there_is_no_advice_to_cut_a_batch_that_cannot_be_cut():
    with pytest.raises(LeokitError) as caught, memory_errors(replace(CONFIG, batch_size=7), CPU, World()):
        raise MemoryError
    assert "--accumulate" not in str(caught.value)
    assert "smaller --batch-size" in str(caught.value)


def test_what_is_measured_comes_in_smaller_blocks_where_memory_ends():
    made, sizes = trainer(), []
    whole = made._embedded(TRAINING, lambda images: images.mean((2, 3)))

    def embed(images):
        sizes.append(len(images))
        if len(images) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.mean((2, 3))

    torch.testing.assert_close(made._embedded(TRAINING, embed), whole)
    assert sizes == [40, 40, 40, 32, 16, 16, 8]  # of 256, 128, 64, 32 and 16 at most


def test_a_rank_without_images_to_measure():
    class Others(Job):
        """Rank 1 of 2, whose only image is that of rank 0."""

        def gather(self, value):
            return [np.ones((1, 3), np.float32), value]

    made = trainer()
    made.place, made.job = World(1, 2), Others()
    one = Labelled(InMemory(PIXELS[:1]), LABELS[:1], ("a",))
    assert torch.equal(made._embedded(one, lambda images: images.mean((2, 3))), torch.ones(1, 3))


def test_the_state_holds_the_sums_of_all_ranks():
    class Others(Job):
        """Rank 0 of 2."""

        def gather(self, value):
            sums, skipped = value
            return [value, ([number + 2 for number in sums], skipped)]

    made = taken(trainer(), 3)
    own = made.progress.sums.clone()
    made.job = Others()
    torch.testing.assert_close(made.pack()[0]["sums"], own + 1)


def test_steps_that_float16_skips_are_left_out_of_the_mean_norm():
    made = taken(trainer(replace(CONFIG, precision="float16")), 1)
    loss, before = made._loss, made.network.classifier.weight.clone()
    made._loss = lambda logits, labels: loss(logits, labels) * 1e36  # finite itself; its gradient is not
    assert torch.equal(taken(made, 1).network.classifier.weight, before)
    made._loss = loss
    skipped = int(taken(made, 2).progress.skipped)
    assert 1 <= skipped < 4
    norm = float(made.progress.sums[3]) / (4 - skipped)
    assert made.line()["gradient_norm"] == pytest.approx(norm)
    assert 0 < norm < np.inf


def test_no_gradient_that_float16_can_hold_ends_the_training():
    made = trainer(replace(CONFIG, precision="float16", epochs=9))
    loss = made._loss
    made._loss = lambda logits, labels: loss(logits, labels) * 1e37
    with pytest.raises(Diverged, match=r"not finite in float16.*--precision bfloat16"):
        taken(made, 40)


def test_the_layout_of_maps_follows_the_option():
    for kept in (True, False):
        made, seen = trainer(replace(CONFIG, channels_last=kept)), []
        made.network.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[0]))
        made.take()
        made.held_out(TRAINING)
        layouts = [images.is_contiguous(memory_format=torch.channels_last) for images in seen]
        assert layouts == [kept, kept]


def test_dropout_before_the_classifier_is_shared_over_ranks():
    network = new_network("resnet10t", 5, image_size=32, dropout=0.5, rotation=True, seed=0)
    share_over_ranks(network, rank=0, size=1, device=CPU)
    assert [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)] == [0.5]
    assert isinstance(network.dropout, SharedDropout)
    assert network.backbone.drop_rate == 0


def test_the_turns_that_are_guessed_are_those_of_the_pixels():
    made, seen = trainer(replace(CONFIG, rotation_weight=1.0)), []
    backward = made._backward
    made._backward = lambda *given: [seen.append(given), backward(*given)][1]
    taken(made, 2)
    for step, (images, labels, turns) in enumerate(seen):
        chosen = made.order(0)[8 * step : 8 * step + 8]
        draws = draw(made.recipe, 8, randomness.generator(CONFIG.seed, "augmentation", step))
        upright = augment(PIXELS[chosen], replace(made.recipe, rotation=False), draws)
        for image, turn, plain in zip(images, turns, made._normalised(upright), strict=True):
            assert torch.equal(image, plain.rot90(int(turn), (1, 2)))
        assert labels.tolist() == LABELS[chosen].tolist()
    assert len({int(turn) for *_, turns in seen for turn in turns}) > 1


@pytest.mark.parametrize("kind", ["cosine", "step", "constant"])
def test_learning_rates_are_those_of_the_formula(kind):
    lr, epochs, steps, warm = 0.1, 7, 5, 2
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = make_schedule(
        kind,
        optimiser,
        epochs=epochs,
        decay_epochs=3,
        decay_rate=0.2,
        warmup_epochs=warm,
        lr=lr,
        steps_of_epoch=steps,
    )
    for step in range(epochs * steps):
        schedule.step_update(step)
        after = {
            "cosine": lr * (1 + np.cos(np.pi * step / (epochs * steps))) / 2,
            "step": lr * 0.2 ** (step // (3 * steps)),
            "constant": lr,
        }[kind]
        rising = lr / 100 + (lr - lr / 100) * step / (warm * steps)
        expected = rising if step < warm * steps else after
        assert optimiser.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9), step


def test_few_shot_accuracy_by_layers():
    made = trainer()
    found = made.few_shot(TRAINING, ("group3.block1", "group3.block1.relu", "pooled"), (1, 2, 5))
    assert list(found) == ["group3.block1", "group3.block1.relu", "pooled"]
    assert list(found["pooled"]) == ["1shot", "2shot", "5shot"]
    assert found["pooled"]["2shot"] == found["group3.block1.relu"]["2shot"]  # of the last block they are one
    assert found["group3.block1"]["5shot"][0] > 0.5  # tones are told apart before any training


def test_layers_are_as_wide_as_what_they_give():
    """The features of this model are widened before the classifier, which timm's `num_features` leaves out."""
    config = replace(CONFIG, backbone="mobilenetv3_small_050")
    made = trainer(config)
    layers = ("pooled", "blocks.3")
    widths = Layers(made.network.backbone, layers).widths(16)
    assert widths == [
        vectors.shape[1] for vectors in Layers(made.network.backbone.eval(), layers)(torch.zeros(1, 3, 16, 16))
    ]
    assert widths[0] == made.network.classifier.in_features
    assert list(made.few_shot(TRAINING, layers, (1,))) == list(layers)


def test_shared_over_the_ranks_of_gpus_a_network_is_the_same():
    network = new_network("mobilenetv3_small_050", 5, image_size=16, dropout=0.0, rotation=False, seed=0).eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = network(images)[0]
    shared = share_over_ranks(network, rank=0, size=2, device=torch.device("cuda"))
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in shared.modules()) == 34
    assert torch.equal(shared(images)[0], expected)


def test_the_average_is_what_is_measured():
    made = taken(trainer(replace(CONFIG, ema=0.5)), 4)
    ours = made.evaluated().classifier.weight
    assert not torch.equal(ours, made.network.classifier.weight)
    made.consider(0.5, 0.1, "pooled")
    assert torch.equal(made.progress.best["stem.weight"], made.average.module.backbone.stem.weight)
    assert not made.consider(0.5, 0.1, "pooled")


@pytest.mark.parametrize(("limit", "left"), [("max", 4096), ("3000", 1200), ("1000", 0)])
def test_a_control_group_limits_the_memory_there_is(tmp_path, limit, left):
    group = tmp_path / "sys/fs/cgroup/job/task"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8 kB\nMemAvailable: 4 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/job/task\n")
    for name, value in {"max": limit, "current": "2500", "stat": "anon 1\ninactive_file 700\n"}.items():
        (group.parent / f"memory.{name}").write_text(value)  # a limit of the group around it holds for it too
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == left


def test_images_of_val_are_spread_over_the_class():
    names = [f"{number:03}" for number in range(10)]
    assert _spread(names, 4) == ["000", "002", "005", "007"]
    assert _spread(names, 600) == names
