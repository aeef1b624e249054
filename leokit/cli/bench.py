"""`leokit bench`: extract, read, pretrain, meta-train, seeds, search, eval and uncertainty."""

from dataclasses import asdict
from typing import Any

import typer

from leokit.cli.options import add_command
from leokit.cli.render import Output, TableData
from leokit.config import (
    BenchEvalConfig,
    BenchExtractConfig,
    BenchMetaTrainConfig,
    BenchPretrainConfig,
    BenchReadConfig,
    BenchSearchConfig,
    BenchSeedsConfig,
    BenchUncertaintyConfig,
)

app = typer.Typer(help="Measure how fast things are, and how near to what the machine allows.", no_args_is_help=True)


def extract(config: BenchExtractConfig, output: Output) -> None:
    """Measure decoding, the model and writing, each alone, then an extraction, and what it reaches of what they allow.

    Example: leokit bench extract images --image-size 84 --repeat 10
    """
    from leokit.stages import bench

    if output.dry_run:
        output.result({"images": str(config.images)}, [], [f"Would measure an extraction of {config.images}."])
        return
    speed = bench.run_extract(config)
    parts = {"decoding": speed.decoding, "model": speed.model, "writing": speed.writing}
    rows = [[f"{part} alone", f"{rate:.1f}"] for part, rate in parts.items()]
    rows += [["what they allow", f"{speed.allowed:.1f}"], ["together", f"{speed.together:.1f}"]]
    sentences = [
        f"{100 * speed.share:.1f} % of what the parts allow, over {speed.images} images on {speed.device} with "
        f"{speed.workers} workers; slowest: {speed.slowest}.",
        f"Peak memory {speed.memory / 1e6:.0f} MB, of a worker {speed.worker_memory / 1e6:.0f} MB.",
    ]
    output.result(
        {**asdict(speed), "share": speed.share}, [TableData("Extraction", ["part", "images/s"], rows)], sentences
    )


def read(config: BenchReadConfig, output: Output) -> None:
    """Make a feature store and measure loading it beside a plain read of the same files.

    Example: leokit bench read
    """
    from leokit.stages import bench

    if output.dry_run:
        size = config.rows * config.dim * (2 if config.dtype == "float16" else 4)
        output.result({"bytes": size}, [], [f"Would make a store of {size / 1e9:.2f} GB and read it."])
        return
    speed = bench.run_read(config)
    rows = [["plain read", f"{speed.plain / 1e9:.2f}"], ["load", f"{speed.load / 1e9:.2f}"]]
    sentences = [
        f"{100 * speed.share:.0f} % of a plain read, for {config.rows} x {config.dim} {config.dtype} "
        f"({speed.bytes / 1e9:.2f} GB). Opening, which checks the hashes, took {speed.open:.2f} s.",
    ]
    output.result({**asdict(speed), "share": speed.share}, [TableData("Reading", ["", "GB/s"], rows)], sentences)


def pretrain(config: BenchPretrainConfig, output: Output) -> None:
    """Measure pre-training on made-up images, and what it reaches of the rate of a large matrix product.

    Example: leokit bench pretrain --backbone wrn16_4 --image-size 64
    """
    from leokit.stages import bench_learning

    if output.dry_run:
        output.result(asdict(config), [], [f"Would measure for about {1.25 * config.seconds:.0f} s."])
        return
    speed = bench_learning.run_pretrain(config)
    sentence = (
        f"{speed['operations'] / 1e9:.3g} GFLOP an image: {100 * speed['share_of_limit']:.0f} % of the "
        f"{speed['operations_per_second'] / 1e9:.0f} GFLOP/s of a large {config.precision} matrix product on "
        f"{speed['device']}; peak memory {speed['peak_memory_mb']:.0f} MB."
    )
    rows = [[config.backbone, f"{speed['images_per_second']:.1f}"]]
    output.result(speed, [TableData("Pre-training", ["", "images/s"], rows)], [sentence])


def meta_train(config: BenchMetaTrainConfig, output: Output) -> None:
    """Measure meta-training against the obvious twin, one episode at a time with autograd, taking turns.

    Example: leokit bench meta-train --shots 5
    """
    from leokit.stages import bench_learning

    _learning(config, output, "steps", bench_learning.run_meta_train)


def search(config: BenchSearchConfig, output: Output) -> None:
    """Measure the memory and the rate of trials that share made-up features, and how long such features take.

    Example: leokit bench search --jobs 1,2,4
    """
    from leokit.stages import bench_search

    rows = config.classes * config.per_class
    if output.dry_run:
        wide = 0 if config.zeros else config.dim * (2 + (2 if config.dtype == "float16" else 4))
        output.result({"bytes": rows * wide}, [], [f"Would take {rows * wide / 1e9:.2f} GB of disk for {rows} rows."])
        return
    found = bench_search.run(config)
    lines = [
        [
            str(entry["trials"]),
            f"{(entry['own_memory_of_each'] or 0) / 1e6:,.0f}",
            f"{(entry['rows_in_memory'] or 0) / 1e6:,.0f}",
            f"{entry['steps_per_second_of_each']:.1f}",
            f"{entry['seconds_to_read_all']:.1f}",
        ]
        for entry in found["together"]
    ]
    columns = ["trials", "memory of\neach, MB", "rows in\nmemory, MB", "steps/s\nof each", "s to read\nall rows"]
    growth, size = found["together"][-1]["own_memory_of_each"], found["bytes_of_rows"]
    spent = found["seconds"]
    sentences = [f"{rows:,} x {config.dim} of {config.classes:,} classes: unit rows {size / 1e9:.2f} GB."]
    if spent:
        parts = ", ".join(
            f"{part} {wall:.0f} s ({worked:.0f} of the processor)" for part, (wall, worked) in spent.items()
        )
        sentences.append(f"Store {found['bytes_of_store'] / 1e9:.2f} GB: {parts}.")
        sentences.append(
            f"From the disk, nothing of the rows in memory: {found['cold']['first_second']} steps in the first second, "
            f"{found['cold']['steps_per_second']:.1f}/s over {config.seconds:.0f} s."
        )
    sentences.append(f"{found['steps_per_processor_second']:.1f} steps to a second of the processor, at best.")
    if growth is not None:
        sentences.append(
            f"A further trial takes {growth / 1e6:.0f} MB, {100 * growth / size:.1f} % of the size of the rows."
        )
    output.result(found, [TableData("Trials at a time", columns, lines)], sentences)


def seeds(config: BenchSeedsConfig, output: Output) -> None:
    """Measure the steps of several seeds one after the other, batched and in processes, taking turns.

    Or, with --trials, those of several trials of a search, as leokit search --batched takes them.

    Example: leokit bench seeds --shots 5
    """
    from leokit.stages import bench_learning

    runs = "trials" if config.trials else "seeds"
    if output.dry_run:
        output.result(asdict(config), [], [f"Would take {config.steps} steps of {config.seeds} {runs} in each turn."])
        return
    speed = bench_learning.run_seeds(config)

    def times(way: str, prefix: str = "") -> str:
        if way not in speed[f"{prefix}ratio"]:
            return ""
        least, most = speed[f"{prefix}ratio_range"][way]
        return f"{speed[f'{prefix}ratio'][way]:.2f} ({least:.2f} to {most:.2f})"

    rows = [[way, f"{seconds:.2f}", times(way), times(way, "processor_")] for way, seconds in speed["seconds"].items()]
    columns = ["", "seconds", "times as fast", "by the processor's seconds"]
    sentences = [
        f"{config.steps} steps of {config.seeds} {runs}, {config.ways}-way {config.shots}-shot, {config.dim} features, "
        f"medians of {config.rounds} turns, on {speed['device']} with {speed['threads']} threads"
        + (f" and {speed['jobs']} processes." if speed["jobs"] > 1 else "."),
    ]
    if speed["jobs"] == 1:
        sentences.append("With so many threads there is room for one process: OMP_NUM_THREADS=1 makes room for more.")
    output.result(speed, [TableData(f"Several {runs}", columns, rows)], sentences)


def eval(config: BenchEvalConfig, output: Output) -> None:
    """Measure testing against the obvious twin, one episode at a time, taking turns.

    Example: leokit bench eval --queries rest600
    """
    from leokit.stages import bench_learning

    _learning(config, output, "episodes", bench_learning.run_eval)


def uncertainty(config: BenchUncertaintyConfig, output: Output) -> None:
    """Measure predictions from samples of codes and weights against one sample of one episode at a time, taking turns.

    Example: leokit bench uncertainty --samples 100
    """
    from leokit.stages import bench_learning

    _learning(config, output, "samples", bench_learning.run_uncertainty, twin="one at a time")


def _learning(config: Any, output: Output, unit: str, run: Any, twin: str = "the obvious twin") -> None:
    if output.dry_run:
        output.result(asdict(config), [], [f"Would measure for about {2 * config.rounds * config.seconds:.0f} s."])
        return
    speed = run(config)
    rows = [
        ["leokit", f"{speed[f'{unit}_per_second']:.1f}"],
        [twin, f"{speed[f'twin_{unit}_per_second']:.2f}"],
    ]
    sentences = [
        f"Ratio {speed['ratio']:.1f} (median of {speed['rounds']} turns, {speed['ratio_range'][0]:.1f} to "
        f"{speed['ratio_range'][1]:.1f}) at {config.ways}-way {config.shots}-shot, {config.dim} features.",
        f"{speed['operations'] / 1e9:.3f} GFLOP each: {100 * speed['share_of_limit']:.0f} % of the "
        f"{speed['operations_per_second'] / 1e9:.0f} GFLOP/s of a large matrix product on {speed['device']} with "
        f"{speed['threads']} threads; peak memory {speed['peak_memory_mb']:.0f} MB.",
    ]
    if "milliseconds" in speed:
        parts = ", ".join(f"{name} {value:.1f}" for name, value in speed["milliseconds"].items())
        sentences.append(f"Milliseconds: {parts}; {speed['operator_calls']} calls of torch's operators a step.")
    output.result(speed, [TableData("Speed", ["", f"{unit}/s"], rows)], sentences)


add_command(app, "extract", BenchExtractConfig, extract, table="bench-extract")
add_command(app, "read", BenchReadConfig, read, table="bench-read")
add_command(app, "pretrain", BenchPretrainConfig, pretrain, table="bench-pretrain")
add_command(app, "meta-train", BenchMetaTrainConfig, meta_train, table="bench-meta-train")
add_command(app, "search", BenchSearchConfig, search, table="bench-search")
add_command(app, "seeds", BenchSeedsConfig, seeds, table="bench-seeds")
add_command(app, "eval", BenchEvalConfig, eval, table="bench-eval")
add_command(app, "uncertainty", BenchUncertaintyConfig, uncertainty, table="bench-uncertainty")
