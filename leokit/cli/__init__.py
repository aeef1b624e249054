"""The `leokit` command: one module per subcommand, which turns options into a configuration and a result into text."""

import signal
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
from leokit.cli.options import add_command
from leokit.cli.render import Common
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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="Show no progress bar.")] = False,
) -> None:
    """Options of every subcommand."""
    context.obj = Common(quiet=quiet, verbose=verbose, progress=not (no_progress or quiet))


add_command(app, "demo", DemoConfig, demo.command)
add_command(app, "pretrain", PretrainConfig, pretrain.command)
add_command(app, "extract", ExtractConfig, extract.command)
add_command(app, "import", ImportConfig, importing.command)
add_command(app, "meta-train", MetaTrainConfig, meta_train.command)
add_command(app, "search", SearchConfig, search.command)
add_command(app, "eval", EvalConfig, eval.command)
add_command(app, "uncertainty", UncertaintyConfig, uncertainty.command)
add_command(app, "analyze", AnalyzeConfig, analyze.command)
add_command(app, "predict", PredictConfig, predict.command)
add_command(app, "fit", FitConfig, fit.command)
add_command(app, "export", ExportConfig, export.command)
add_command(app, "table", TableConfig, table.command)
add_command(app, "report", ReportConfig, report.command)
add_command(app, "inspect", InspectConfig, inspect.command)
add_command(app, "verify", VerifyConfig, verify.command)
app.add_typer(regress.app, name="regress")
app.add_typer(splits.app, name="splits")
app.add_typer(bench.app, name="bench")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; SIGTERM is treated as Ctrl-C."""
    signal.signal(signal.SIGTERM, _terminate)
    app()


if __name__ == "__main__":
    main()
