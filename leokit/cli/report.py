"""`leokit report`."""

import shlex

from leokit.cli.render import Output, TableData
from leokit.config import ReportConfig


def command(config: ReportConfig, output: Output) -> None:
    """Write one page of all that the work folder holds: accuracies with intervals, learning curves, calibration,
    figures, and how everything was made.

    The HTML page is a single file that needs no network. What is unfinished or damaged is named in it. With --card, a
    folder with one run and its model card in the format of the Hugging Face Hub, to upload as it is.

    Example: leokit report
    """
    if config.card:
        _card(config, output)
        return
    from leokit.stages import report

    for name in ("run", "license"):
        if getattr(config, name) is not None:
            output.note(f"--{name} is of a --card: the page shows all that is there.")
    if output.dry_run:
        output.plan(report.dry_run(config), "Would write")
        return
    with output.progress("Drawing") as progress:
        done = report.run(config, on_progress=progress, on_message=output.note)
    rows = [
        ["size", f"{done.bytes / 2**10:,.0f} KiB"],
        ["artifacts", str(len(done.artifacts))],
        ["figures", str(done.figures)],
    ]
    rows += [["not shown", f"{trouble.name}: {trouble.text}"] for trouble in done.troubles]
    data = {
        "out": str(done.path),
        "bytes": done.bytes,
        "artifacts": list(done.artifacts),
        "figures": done.figures,
        "not_shown": {trouble.name: trouble.text for trouble in done.troubles},
    }
    output.result(data, [TableData("Report", ["", ""], rows, numeric=False)], [f"In {done.path}"])
    if config.format == "html":
        output.note("Open it in a browser; it needs no network.")


def _card(config: ReportConfig, output: Output) -> None:
    from leokit.stages import card

    if output.dry_run:
        output.plan(card.dry_run(config), "Would write")
        return
    done = card.run(config, on_message=output.note)
    rows = [
        ["run", done.run[:12]],
        ["files", str(len(done.files))],
        ["size", f"{sum(done.files.values()) / 2**20:.1f} MiB"],
    ]
    rows += [["not in it", f"{trouble.name}: {trouble.text}"] for trouble in done.troubles]
    data = {
        "out": str(done.folder),
        "run": done.run,
        "files": done.files,
        "not_shown": {trouble.name: trouble.text for trouble in done.troubles},
    }
    output.result(data, [TableData("Model card", ["", ""], rows, numeric=False)], [f"In {done.folder}"])
    if config.license is None:
        output.note("It states no licence: --license apache-2.0, or another name that the Hub knows, does.")
    output.next_command(f"hf upload USER/NAME {shlex.quote(str(done.folder))}")
