"""`leokit import`."""

from leokit.cli.next_steps import suggest_training, work_words
from leokit.cli.render import Output, TableData
from leokit.config import ImportConfig
from leokit.text import pasteable


def command(config: ImportConfig, output: Output) -> None:
    """Turn embeddings that others made into features: DeepMind's pickles, or NumPy files with labels.

    DeepMind's embeddings (Python 2 or 3) are read without running anything in them: a pickle that asks for more than
    NumPy arrays and strings is refused, and what it asks for is named.

    A .npz file has the arrays 'embeddings' (or 'features'), a row for each image, and 'labels', and may have 'images',
    their names. NAME.npy has its labels beside it: NAME.labels.npy, NAME.labels.txt with a label on each line, or
    NAME.labels.csv with the column class_name and maybe image. Either one for each split (train.npz, val.npz,
    test.npz), or one file and --splits.

    Example: leokit import embeddings --dataset miniImageNet --crop center
    """
    from leokit.stages import importing

    folder = importing.default_out(config)
    if output.dry_run:
        imported = importing.read(config)
        data = {"out": str(folder), "counts": imported.counts, "trained_on": imported.trained_on}
        output.result(data, [_table("Would import", imported.counts)], [f"Would go to {folder}."])
        return
    with output.progress("Importing") as progress:
        store = importing.run(config, on_progress=progress, on_message=output.note)
    facts = store.facts
    name = (facts["backbone"] or {}).get("name", "backbone not recorded")
    trained_on = facts["trained_on"]
    source = trained_on if isinstance(trained_on, str) else f"{len(trained_on)} classes"
    sentences = [
        f"{name} (trained on: {source}), {facts['dim']} features of {facts['dtype']}.",
        f"In {store.folder}.",
    ]
    table = _table("Features", {split: facts["counts"][split] for split in store.splits})
    output.result({"out": str(store.folder), "id": store.id, **facts}, [table], sentences)
    preset = "tieredimagenet-1shot" if "(tieredimagenet)" in facts["split_source"] else None
    where = [*(["--features", pasteable(store.folder)] if config.out else []), *work_words(config)]
    suggest_training(store, preset, where, output)


def _table(title: str, counts: dict[str, dict[str, int]]) -> TableData:
    rows = [[split, str(len(classes)), str(sum(classes.values()))] for split, classes in counts.items()]
    return TableData(title, ["split", "classes", "images"], rows)
