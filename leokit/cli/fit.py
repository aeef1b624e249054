"""`leokit fit`."""

from leokit.cli.render import Output, TableData
from leokit.config import FitConfig
from leokit.text import method_name, pasteable


def command(config: FitConfig, output: Output) -> None:
    """Adapt a run to the images of your classes, and save the classifier.

    The classifier needs neither the run nor the support images later: leokit predict --classifier takes it, and
    leokit export makes an ONNX file of it.

    Example: leokit fit --support my-classes
    """
    from leokit.stages import fit

    if output.dry_run:
        output.plan(fit.dry_run(config, output.note), "Would fit")
        return
    with output.progress("Fitting") as progress:
        fitted = fit.run(config, on_progress=progress, on_message=output.note)
    classifier, counts = fitted.classifier, fitted.classifier.counts
    of_class = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    rows = [
        ["classifier", str(fitted.folder)],
        ["id", fitted.id[:12]],
        ["classes", str(len(classifier.classes))],
        ["images of a class", of_class],
        ["method", method_name(classifier.variant) if classifier.method == "leo" else classifier.method],
        ["temperature", f"{classifier.temperature:.3g}"],
    ]
    data = {"out": str(fitted.folder), "id": fitted.id, **fitted.manifest.facts}
    output.result(data, [TableData("Classifier", ["", ""], rows, numeric=False)], [classifier.chosen])
    output.next_command(f"leokit predict --classifier {pasteable(fitted.folder)} IMAGES")
