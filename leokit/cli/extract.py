"""`leokit extract`."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from leokit import distributed
from leokit.cli.next_steps import suggest_training, work_words
from leokit.cli.render import Output, TableData, few_digits
from leokit.config import ExtractConfig
from leokit.text import pasteable

if TYPE_CHECKING:
    from leokit.checks import Divided


def command(config: ExtractConfig, output: Output) -> None:
    """Turn a tree of images, a folder for each class, into features in Parquet by a pretrained backbone.

    An image that cannot be read becomes a row of failures.parquet, never another image. The same command goes on
    after an interruption.

    Example: leokit extract images --splits miniimagenet --image-size 84
    """
    from leokit.checks import check_extract

    divided = check_extract(config)  # before torch is imported
    from leokit.splits import BUILT_IN
    from leokit.stages import extract

    if output.dry_run:
        _dry_run(config, divided, output)
        return
    with output.progress("Extracting") as progress:
        store = extract.run(config, divided=divided, on_progress=progress, on_message=output.note)
    if distributed.world().rank:
        return  # rank 0 says it
    facts, info = store.facts, store.manifest.info
    backbone = facts["backbone"]
    prep = backbone["preprocessing"]
    sentences = [
        f"{backbone['name']} (trained on: {_source(facts['trained_on'])}), {prep['image_size']} pixels, "
        f"{facts['dim']} features of {facts['dtype']}; {info['images_per_second']} images/s, "
        f"slowest: {info['slowest']}.",
        *(
            [f"{facts['failures']} images could not be read: see {store.folder / 'failures.parquet'}."]
            * bool(facts["failures"])
        ),
        *_seen(facts),
        f"In {store.folder}.",
    ]
    data = {"out": str(store.folder), "id": store.id, "images_per_second": info["images_per_second"], **facts}
    output.result(data, [_table("Features", facts["counts"])], sentences)
    where = [*(["--features", pasteable(store.folder)] if config.out else []), *work_words(config)]
    suggest_training(store, "own-images", where, output)
    if any(name in facts["split_source"] for name in BUILT_IN):
        output.note(f"Or LEO with the published hyper-parameters: {' '.join(['leokit meta-train --shots 1', *where])}")


def _seen(facts: Mapping[str, Any]) -> list[str]:
    """How many test classes the backbone has seen."""
    from leokit.evaluations import seen_sentence

    total = len(facts["counts"].get("test", {}))
    return [seen_sentence(facts["trained_on"], facts["classes_seen"]["test"], total, "test")] if total else []


def _dry_run(config: ExtractConfig, divided: "Divided", output: Output) -> None:
    from leokit.stages import extract

    plan = extract.plan(config, divided, output.note)
    estimate = extract.estimate(config, plan)
    out = extract.default_out(config)
    data = {"out": str(out), "counts": plan.counts, "files": len(plan.shards), **asdict(estimate)}
    sentences = [
        f"{len(plan.shards)} files of about {estimate.bytes / 1e6:.3g} MB in all, in {out}.",
        f"About {_duration(estimate.seconds)}, by a sample: {few_digits(estimate.decoding)} images/s for each "
        f"process that decodes, {few_digits(estimate.model)} images/s for the model.",
    ]
    if estimate.to_fetch:
        sentences.append(f"The weights of {config.backbone} would be fetched by timm where they are not in its cache.")
    output.result(data, [_table("Would extract", plan.counts)], sentences)


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _table(title: str, counts: Mapping[str, Mapping[str, int]]) -> TableData:
    from leokit.splits import SPLIT_NAMES

    rows = [
        [split, str(len(counts[split])), str(sum(counts[split].values()))] for split in SPLIT_NAMES if split in counts
    ]
    return TableData(title, ["split", "classes", "images"], rows)


def _source(trained_on: str | list[str]) -> str:
    return trained_on if isinstance(trained_on, str) else f"{len(trained_on)} classes"
