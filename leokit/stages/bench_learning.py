"""`leokit bench pretrain`, `meta-train`, `seeds`, `eval` and `uncertainty`: most of them against a twin.

Both do the same work on the same draws and take turns, so that the ratio holds on a machine whose speed drifts. The
arithmetic limit is the number of operations of the matrix products, counted from their shapes, over the rate of large
matrix products measured here.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from leokit.backbones import preprocessing_of
from leokit.backbones.training import new_network
from leokit.checks import query_count
from leokit.config import (
    BenchEvalConfig,
    BenchMetaTrainConfig,
    BenchPretrainConfig,
    BenchSeedsConfig,
    BenchUncertaintyConfig,
    MetaTrainConfig,
    PretrainConfig,
    build,
    default_workers,
    nearest_preset,
    read_preset,
    read_space,
)
from leokit.devices import resolve_device
from leokit.distributed import Job, World
from leokit.engine import training
from leokit.engine.pixels import InMemory
from leokit.engine.predictives import Member, predict_episodes
from leokit.engine.pretraining import Labelled, Trainer
from leokit.engine.scoring import score
from leokit.engine.state import State, new_state, stack
from leokit.engine.steps import Steps, make_steps
from leokit.episodes import EpisodeSampler, FeatureMatrix, MatrixArrays
from leokit.features import FeatureTable
from leokit.images.augmentation import Recipe
from leokit.leo import Draws, Parameters, Penalties, clip_gradients, reference
from leokit.leo.learners import make_learner
from leokit.leo.sets import penalties
from leokit.space import Space, trial_config
from leokit.stages.meta_train.processes import processes_at_a_time
from leokit.waiting import adapt_waiting

CLASSES = 20


def run_meta_train(config: BenchMetaTrainConfig) -> dict[str, Any]:
    """Steps a second of meta-training, ours and the twin's, on made-up features.

    Returns:
        `steps_per_second`, `twin_steps_per_second`, `ratio` (median over rounds), `operations` of a step,
        `operations_per_second` of large matrix products, `share_of_limit`, `peak_memory_mb`; `milliseconds` of the
        parts of a step, and its `operator_calls`.
    """
    device = resolve_device(config.device)
    trained = _config(config.shots, config.ways, config.queries, config.meta_batch)
    trained = replace(trained, cuda_graph=config.cuda_graph, compile=config.compile)
    features = made_up_features(CLASSES, 600, config.dim, device)
    ours, twin = new_state(trained, config.dim, device), new_state(trained, config.dim, device)
    steps = make_steps(trained, features)
    twin_steps = _TwinSteps(trained, features)

    def take() -> None:
        steps.take(ours)

    def take_twin() -> None:
        twin_steps.take(twin)

    rates = _in_turns(take, take_twin, rounds=config.rounds, seconds=config.seconds, device=device)
    # A graph that is replayed shows no operations: they are counted on steps without.
    plain, state = make_steps(replace(trained, cuda_graph=False), features), new_state(trained, config.dim, device)
    found = _result(rates, lambda: plain.take(state), config.rounds, device, unit="steps")
    return {**found, "milliseconds": _parts(trained, features, device), "operator_calls": _calls(plain, state)}


def run_seeds(config: BenchSeedsConfig) -> dict[str, Any]:
    """Seconds for the same steps of several seeds: one after the other, batched, and on a CPU in processes.

    Or of several trials, which differ in other numbers and share their seed: one after the other, and batched.

    Returns:
        By way: `seconds` of a turn (median), `ratio` of those one after the other to them (median over turns) and its
        `ratio_range`; the same ratio of the processor's seconds as `processor_ratio` and `processor_ratio_range`, of
        the ways that stay in this process on a CPU; and where it was measured.
    """
    device = resolve_device(config.device)
    trained = _config(config.shots, config.ways, config.queries, config.meta_batch)
    trained = replace(trained, cuda_graph=config.cuda_graph, compile=config.compile)
    features = made_up_features(CLASSES, 600, config.dim, device)
    if config.trials:
        space = Space.read(read_space("published"), "published")
        runs = [trial_config(trained, space.draw(0, number)) for number in range(config.seeds)]
    else:
        runs = [replace(trained, seed=seed) for seed in range(config.seeds)]
    single = [(make_steps(run, features), new_state(run, config.dim, device)) for run in runs]
    whole = stack(runs, [new_state(run, config.dim, device) for run in runs])
    batched = make_steps(runs[0], features, runs=runs)

    def one_by_one() -> None:
        for steps, state in single:
            _take(steps, state, config.steps)

    ways: dict[str, Callable[[], object]] = {
        "one after the other": one_by_one,
        "batched": lambda: _take(batched, whole, config.steps),
    }
    jobs = 0
    if device.type == "cpu" and not config.trials:
        jobs = min(processes_at_a_time(config.jobs), config.seeds)
    if jobs > 1:  # one process would be one seed after the other
        parallel, arrays = Parallel(jobs, backend="loky", batch_size=1, max_nbytes="100K"), features.arrays()
        threads = torch.get_num_threads()
        ways["processes"] = lambda: parallel(
            delayed(_take_in_process)(run, arrays, config.steps, threads) for run in runs
        )
    turns: list[dict[str, tuple[float, float]]] = []  # seconds, and those of the processor
    with parallel if jobs > 1 else nullcontext():
        for _ in range(1 + config.rounds):  # the first one starts processes and captures graphs
            turns.append({})
            for name, way in ways.items():
                _synchronise(device)
                started, worked = time.perf_counter(), time.process_time()
                way()
                _synchronise(device)
                turns[-1][name] = time.perf_counter() - started, time.process_time() - worked
    turns = turns[1:]

    def ratios(which: int, names: Iterable[str], prefix: str = "") -> dict[str, Any]:
        found = {name: [turn["one after the other"][which] / turn[name][which] for turn in turns] for name in names}
        return {
            f"{prefix}ratio": {name: statistics.median(values) for name, values in found.items()},
            f"{prefix}ratio_range": {name: [min(values), max(values)] for name, values in found.items()},
        }

    here = [name for name in ways if name != "processes"] if device.type == "cpu" else []
    return {
        "seconds": {name: statistics.median(turn[name][0] for turn in turns) for name in ways},
        **ratios(0, ways),
        **ratios(1, here, "processor_"),
        "seeds": config.seeds,
        "trials": config.trials,
        "steps": config.steps,
        "rounds": config.rounds,
        "threads": torch.get_num_threads(),
        "jobs": jobs,
        "device": str(device),
        "torch": torch.__version__,
    }


def _take(steps: Steps, state: State, count: int) -> None:
    for _ in range(count):
        steps.take(state)
    steps.check(state)


def _take_in_process(config: MetaTrainConfig, features: MatrixArrays, count: int, threads: int) -> None:
    """Steps of a run in a process of its own, with as many threads as alone, so that its bits are the same."""
    adapt_waiting()
    torch.set_num_threads(threads)
    matrix = FeatureMatrix.of(features)
    _take(make_steps(config, matrix), new_state(config, matrix.dim, torch.device("cpu")), count)


def _parts(config: MetaTrainConfig, features: FeatureMatrix, device: torch.device, count: int = 20) -> dict[str, float]:
    """Milliseconds of the parts of a step, one after the other."""
    steps, state = Steps(config, features), new_state(config, features.dim, device)
    inputs = steps.inputs(0)
    _, gradients = steps._gradients(state, inputs)
    work: dict[str, Callable[[], object]] = {
        "episodes and draws": lambda: steps.inputs(0),
        "loss": lambda: steps.learner.loss(state.parameters, *inputs),
        "loss and gradients": lambda: steps._gradients(state, inputs),
        "clipping and Adam": lambda: steps._descend(state, gradients),
    }
    found = {}
    for name, part in work.items():
        _synchronise(device)
        started = time.perf_counter()
        for _ in range(count):
            part()
        _synchronise(device)
        found[name] = 1000 * (time.perf_counter() - started) / count
    return found


def _calls(steps: Steps, state: State) -> int:
    """Calls of torch's operators in a step."""

    mode: Any = TorchDispatchMode  # whose types say less than they should

    class Counter(mode):  # type: ignore[misc]
        calls = 0

        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            self.calls += 1
            return function(*arguments, **(options or {}))

    with Counter() as counter:
        steps.take(state)
    calls: int = counter.calls
    return calls


def run_eval(config: BenchEvalConfig) -> dict[str, Any]:
    """Episodes a second of testing with all other images of a class as queries, ours and the twin's.

    Returns:
        As `run_meta_train`, with episodes in place of steps.
    """
    device = resolve_device(config.device)
    trained = _config(config.shots, config.ways, 15, 12)
    features = made_up_features(CLASSES, 600, config.dim, device)
    state = new_state(trained, config.dim, device)
    tensors = {name: value.detach() for name, value in state.parameters.items()}
    sampler = EpisodeSampler(features.offsets, ways=config.ways, seed=0, purpose="evaluation")
    queries = query_count(config.queries, config.shots)
    method = training.classifier(make_learner(trained, config.dim), tensors)

    def ours(episodes: int = config.episodes) -> None:
        score(features, sampler, {"leo": method}, shots=config.shots, queries=queries, episodes=episodes)

    # The twin takes gradients by codes, for which the graph must begin somewhere: at the encoder alone.
    plain = {**tensors, "encoder": tensors["encoder"].clone().requires_grad_()}

    def twin() -> None:
        _twin_evaluation(trained, features, sampler, plain, config.shots, queries or 600 - config.shots)

    rates = _in_turns(ours, twin, rounds=config.rounds, seconds=config.seconds, device=device)
    rates = [(fast * config.episodes, slow) for fast, slow in rates]
    return _result(rates, lambda: ours(100), config.rounds, device, unit="episodes", per_call=100)


def run_uncertainty(config: BenchUncertaintyConfig) -> dict[str, Any]:
    """Samples a second of predictions from the posterior, ours and a loop's over episodes and samples.

    Returns:
        As `run_meta_train`, with samples (of an episode each) in place of steps.
    """
    device = resolve_device(config.device)
    trained = _config(config.shots, config.ways, config.queries, 12)
    features = made_up_features(CLASSES, 600, config.dim, device)
    tensors = {name: value.detach() for name, value in new_state(trained, config.dim, device).parameters.items()}
    sampler = EpisodeSampler(features.offsets, ways=config.ways, seed=0, purpose="evaluation")
    learner = make_learner(trained, config.dim)

    def member(samples: int) -> Member:
        return Member(features, lambda support, ids, _: learner.posterior(tensors, support, ids, samples), samples)

    def predict(episodes: int, samples: int, workers: int) -> None:
        predict_episodes(
            {"sampled": [member(samples)]},
            sampler,
            shots=config.shots,
            queries=config.queries,
            episodes=episodes,
            outside=True,
            workers=workers,
        )

    def ours() -> None:
        predict(config.episodes, config.samples, default_workers())

    rates = _in_turns(ours, lambda: predict(1, 1, 0), rounds=config.rounds, seconds=config.seconds, device=device)
    count = config.episodes * config.samples
    rates = [(fast * count, slow) for fast, slow in rates]
    few = min(2, config.episodes)
    return _result(
        rates,
        lambda: predict(few, config.samples, 0),
        config.rounds,
        device,
        unit="samples",
        per_call=few * config.samples,
    )


def _config(shots: int, ways: int, queries: int, meta_batch: int) -> MetaTrainConfig:
    sizes = {"ways": ways, "shots": shots, "queries": queries, "meta_batch": meta_batch}
    return build(MetaTrainConfig, read_preset(nearest_preset(shots)) | sizes)


def made_up_features(classes: int, images: int, dim: int, device: torch.device) -> FeatureMatrix:
    """Separable features of the given size."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(classes, 1, dim)) + 3 * rng.normal(size=(classes, images, dim))
    names = [str(number) for number in range(classes)]
    table = FeatureTable(rows.reshape(-1, dim).astype(np.float32), names, np.arange(classes + 1) * images)
    return FeatureMatrix(table, device=device)


class _TwinSteps(Steps):
    """The same steps, an episode at a time by `leo.reference`."""

    def take(self, state: State) -> None:
        config = self.config
        support, query = self.episodes(state.step)
        draws = self.learner.draws(state.step, range(config.meta_batch), support)
        parameters = Parameters(**state.parameters)
        losses = [
            reference.episode(
                parameters,
                support[index],
                query[index],
                penalties(config),
                inner_steps=config.inner_steps,
                finetuning_steps=config.finetuning_steps,
                draws=Draws(*(None if value is None else value[index] for value in draws)),
            ).loss
            for index in range(config.meta_batch)
        ]
        loss = torch.stack(losses).mean()
        gradients = torch.autograd.grad(loss, list(parameters))
        for value, gradient in zip(
            parameters, clip_gradients(gradients, value=config.clip_value, norm=config.clip_norm), strict=True
        ):
            value.grad = gradient
        state.optimiser.step()
        state.step += 1


def _twin_evaluation(
    config: MetaTrainConfig,
    features: FeatureMatrix,
    sampler: EpisodeSampler,
    tensors: dict[str, Tensor],
    shots: int,
    queries: int,
) -> None:
    rows = sampler.draw(range(1), shots=shots, queries=queries)
    reference.episode(
        Parameters(**tensors),
        features.rows[rows.support[0]],
        features.rows[rows.query[0]],
        Penalties(0, 0, 0, 0),
        inner_steps=config.inner_steps,
        finetuning_steps=config.finetuning_steps,
        draws=None,
    )


def _in_turns(
    ours: Callable[[], None], twin: Callable[[], None], *, rounds: int, seconds: float, device: torch.device
) -> list[tuple[float, float]]:
    """Calls a second of both, taking turns of about `seconds` each, after a turn that is not counted."""
    for work in (ours, twin):
        _rate(work, min(seconds, 1.0), device)
    return [(_rate(ours, seconds, device), _rate(twin, seconds, device)) for _ in range(rounds)]


def _rate(work: Callable[[], None], seconds: float, device: torch.device) -> float:
    _synchronise(device)
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        calls += 1
    _synchronise(device)
    return calls / (time.perf_counter() - started)


def _operations(_: Any, left: Any, right: Any, **__: Any) -> int:
    """Of a product of matrices of these shapes; torch's own count passes over `addmm_`."""
    return 2 * int(left[0]) * int(left[1]) * int(right[1])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _result(
    rates: list[tuple[float, float]],
    work: Callable[[], None],
    rounds: int,
    device: torch.device,
    *,
    unit: str,
    per_call: int = 1,
) -> dict[str, Any]:
    fast, slow = (statistics.median(pair[index] for pair in rates) for index in (0, 1))
    ratios = [ours / twin for ours, twin in rates]
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _operations})
    with counter:
        work()
    operations = counter.get_total_flops() / per_call
    limit = matrix_product_rate(device)
    return {
        f"{unit}_per_second": fast,
        f"twin_{unit}_per_second": slow,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "rounds": rounds,
        "operations": operations,
        "operations_per_second": limit,
        "share_of_limit": fast * operations / limit,
        "peak_memory_mb": _peak_memory_mb(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "torch": torch.__version__,
    }


def run_pretrain(config: BenchPretrainConfig) -> dict[str, Any]:
    """Images a second of pre-training on made-up images, beside what the operations of the model allow.

    Returns:
        `images_per_second`, `operations` of an image (its products of matrices and convolutions, forward and backward),
        `operations_per_second` of large matrix products in the same precision, `share_of_limit`, `peak_memory_mb`.
    """
    device = resolve_device(config.device)
    classes, images = 64, max(512, 2 * config.batch_size)
    trained = build(
        PretrainConfig,
        {
            "images": "none",
            "backbone": config.backbone,
            "image_size": config.image_size,
            "batch_size": config.batch_size,
            "precision": config.precision,
            "compile": config.compile,
            "dropout": config.dropout,
            "epochs": 10_000,
        },
    )
    network = new_network(
        config.backbone, classes, image_size=config.image_size, dropout=config.dropout, rotation=False, seed=0
    )
    preprocessing = preprocessing_of(network.backbone, config.image_size)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, preprocessing.resized, preprocessing.resized, 3), np.uint8)
    held = InMemory(torch.from_numpy(pixels).to(device))
    labels = rng.integers(0, classes, images)
    trainer = Trainer(
        trained,
        network,
        Labelled(held, labels, tuple(map(str, range(classes)))),
        recipe=Recipe(size=preprocessing.image_size),
        preprocessing=preprocessing,
        device=device,
        place=World(),
        job=Job(),
    )
    trainer.take()
    batch = torch.zeros(config.batch_size, 3, preprocessing.image_size, preprocessing.image_size, device=device)
    counter = FlopCounterMode(display=False)
    with counter:
        trainer.network(batch)[0].sum().backward()
    operations = counter.get_total_flops() / config.batch_size
    _rate(trainer.take, config.seconds / 4, device)
    rate = config.batch_size * _rate(trainer.take, config.seconds, device)
    limit = matrix_product_rate(device, precision=config.precision)
    return {
        "images_per_second": rate,
        "operations": operations,
        "operations_per_second": limit,
        "share_of_limit": rate * operations / limit,
        "peak_memory_mb": _peak_memory_mb(),
        "peak_device_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "device": str(device),
    }


def matrix_product_rate(device: torch.device, precision: str = "float32") -> float:
    """Floating-point operations a second of a large matrix product here, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = torch.randn(2, size, size, device=device).to(getattr(torch, precision))
    best = 0.0
    for _ in range(5):
        _synchronise(device)
        started = time.perf_counter()
        left @ right
        _synchronise(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _peak_memory_mb() -> float:
    """Most memory that this process has held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
