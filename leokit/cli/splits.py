"""`leokit splits list`, `show` and `check`."""

import typer

from leokit.cli.options import add_command
from leokit.cli.render import Output, TableData
from leokit.config import SplitsCheckConfig, SplitsListConfig, SplitsShowConfig
from leokit.errors import DataError

app = typer.Typer(
    help="Tell which classes are for training, validation and test, and which of them an image tree holds.",
    no_args_is_help=True,
)


def list_splits(config: SplitsListConfig, output: Output) -> None:
    """List the class lists that leokit holds.

    Example: leokit splits list
    """
    from leokit.splits import BUILT_IN, SPLIT_NAMES, read_listing

    counts = {name: {split: len(of) for split, of in read_listing(name).classes.items()} for name in BUILT_IN}
    rows = [[name, *(str(of[split]) for split in SPLIT_NAMES)] for name, of in counts.items()]
    table = TableData("Classes of each list", ["splits", *SPLIT_NAMES], rows)
    others = (
        "Beside these, --splits takes random:TRAIN/VAL/TEST, a CSV file class_name,split, or a folder of image lists."
    )
    output.result({"splits": counts}, [table], [others])


def show(config: SplitsShowConfig, output: Output) -> None:
    """Show the classes of each split of a list.

    Example: leokit splits show miniimagenet
    """
    from leokit.splits import read_listing

    classes = read_listing(config.name).classes
    rows = [[name, split] for split, names in classes.items() for name in names]
    counts = ", ".join(f"{split} {len(names)}" for split, names in classes.items())
    table = TableData(f"Classes of {config.name}", ["class", "split"], rows, numeric=False)
    data = {"name": config.name, "classes": {split: list(names) for split, names in classes.items()}}
    output.result(data, [table], [f"{counts}."])


def check(config: SplitsCheckConfig, output: Output) -> None:
    """Check that an image tree holds the classes of each split; name what is missing (exit code 3).

    Example: leokit splits check images --splits miniimagenet
    """
    from leokit.stages import splits

    covered = splits.run(config, on_message=output.note)
    rows = [
        [
            split,
            str(len(part.present) + len(part.missing)),
            str(len(part.present)),
            str(len(part.missing)),
            str(part.images),
        ]
        for split, part in covered.items()
    ]
    lost = [f"Missing from {split}: {', '.join(part.missing)}." for split, part in covered.items() if part.missing]
    lost += [
        f"Missing images of {split}: {', '.join(part.missing_images)}."
        for split, part in covered.items()
        if part.missing_images
    ]
    data = {
        split: {
            "present": list(part.present),
            "missing": list(part.missing),
            "images": part.images,
            "missing_images": list(part.missing_images),
        }
        for split, part in covered.items()
    }
    title = f"Classes in {config.images}"
    output.result(data, [TableData(title, ["split", "classes", "there", "missing", "images"], rows)], lost)
    classes, images = (
        sum(len(getattr(part, key)) for part in covered.values()) for key in ("missing", "missing_images")
    )
    if lost:
        raise DataError(
            f"Not in {config.images}: {classes} of the classes and {images} of the listed images. A class is a folder "
            "of images of that name."
        )


add_command(app, "list", SplitsListConfig, list_splits, table="splits-list")
add_command(app, "show", SplitsShowConfig, show, table="splits-show")
add_command(app, "check", SplitsCheckConfig, check, table="splits-check")
