"""The `leokit` command: one module per subcommand, which turns options into a configuration and a result into text."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Annotated

import typer

from leokit.cli import (
    analyze,
    bench,
    demo,
    eval,
    export,
    extract,
    fit,
    importing,
    inspect,
    meta_train,
    predict,
    pretrain,
    regress,
    report,
    search,
    splits,
    table,
    uncertainty,
    verify,
)
from leokit.cli.options import COMMON, NO_VALUE, add_command
from leokit.cli.render import Common, Output
from leokit.config import (
    AnalyzeConfig,
    DemoConfig,
    EvalConfig,
    ExportConfig,
    ExtractConfig,
    FitConfig,
    ImportConfig,
    InspectConfig,
    MetaTrainConfig,
    PredictConfig,
    PretrainConfig,
    ReportConfig,
    SearchConfig,
    TableConfig,
    UncertaintyConfig,
    VerifyConfig,
)
from leokit.errors import Interrupted
from leokit.waiting import adapt_waiting

_AGAIN = 0.01  # seconds until then
_MAIN = "From images to labels"
_FURTHER = "Backbones, embeddings and hyper-parameters of your own"
_TRUST = "What predictions are worth, and how they come about"
_SHOW = "Results and artifacts"

app = typer.Typer(
    name="leokit",
    help="Few-shot image classification by Latent Embedding Optimization: from raw images to predictions.",
    epilog="Every option of a subcommand can also be set by a variable LEOKIT_OPTION (as LEOKIT_WORK) or in a TOML "
    "file (--config); a flag ranks before a variable, before a file, before a preset, before the default.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from leokit import __version__

        typer.echo(f"leokit {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, metavar=NO_VALUE, help="Print the version and leave."
        ),
    ] = False,
    quiet: Annotated[bool, COMMON["quiet"]] = False,
    verbose: Annotated[bool, COMMON["verbose"]] = False,
    no_progress: Annotated[bool, COMMON["no_progress"]] = False,
) -> None:
    """Options of every subcommand."""
    context.obj = Common(quiet=quiet, verbose=verbose, no_progress=no_progress)


add_command(app, "demo", DemoConfig, demo.command, panel=_MAIN)
add_command(app, "extract", ExtractConfig, extract.command, panel=_MAIN)
add_command(app, "meta-train", MetaTrainConfig, meta_train.command, panel=_MAIN)
add_command(app, "eval", EvalConfig, eval.command, panel=_MAIN)
add_command(app, "predict", PredictConfig, predict.command, panel=_MAIN)
add_command(app, "fit", FitConfig, fit.command, panel=_MAIN)
add_command(app, "export", ExportConfig, export.command, panel=_MAIN)
add_command(app, "pretrain", PretrainConfig, pretrain.command, panel=_FURTHER)
add_command(app, "import", ImportConfig, importing.command, panel=_FURTHER)
add_command(app, "search", SearchConfig, search.command, panel=_FURTHER)
add_command(app, "uncertainty", UncertaintyConfig, uncertainty.command, panel=_TRUST)
add_command(app, "analyze", AnalyzeConfig, analyze.command, panel=_TRUST)
app.add_typer(regress.app, name="regress", rich_help_panel=_TRUST)
add_command(app, "table", TableConfig, table.command, panel=_SHOW)
add_command(app, "report", ReportConfig, report.command, panel=_SHOW)
add_command(app, "inspect", InspectConfig, inspect.command, panel=_SHOW)
add_command(app, "verify", VerifyConfig, verify.command, panel=_SHOW)
app.add_typer(splits.app, name="splits", rich_help_panel=_SHOW)
app.add_typer(bench.app, name="bench", rich_help_panel=_SHOW)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _ask_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Give a request to stop once more where it fell into a place that Python lets no exception out of."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        threading.Timer(_AGAIN, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(ignored)


def main() -> None:
    """Run the command line; SIGTERM is treated as Ctrl-C."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _ask_again
    adapt_waiting()
    try:
        app()
    except KeyboardInterrupt:  # while the command line itself is put together
        Output(Common()).stopped("Stopped before anything was done.")
        sys.exit(Interrupted.exit_code)


if __name__ == "__main__":
    main()
