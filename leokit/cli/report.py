"""`leokit report`."""

from leokit.cli.render import Output, TableData
from leokit.config import ReportConfig


def command(config: ReportConfig, output: Output) -> None:
    """Write one page of all that the work folder holds: accuracies with intervals, learning curves, calibration,
    figures, and how everything was made.

    The HTML page is a single file that needs no network. What is unfinished or damaged is named in it.

    Example: leokit report
    """
    from leokit.stages import report

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
