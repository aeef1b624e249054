"""From command line, environment, file and preset to a configuration: the same for every subcommand.

A subcommand's options are the fields of its configuration class, so that names, types, help and defaults have one home.
"""

import inspect
import json
import os
import select
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, get_args, get_origin

import typer

from leokit.cli.render import Common, Output
from leokit.config import (
    FieldInfo,
    MetaTrainConfig,
    StageConfig,
    build,
    describe,
    read_toml,
    to_toml,
    with_preset,
    yielding,
)
from leokit.errors import Interrupted, LeokitError

Body = Callable[[StageConfig, Output], None]
_PIPE_CLOSED = 141  # as a process that SIGPIPE ends
_RUNNING = "Where and how it runs"
_SHOWN = "Output"
_ARTIFACTS = {  # options that name folders of them
    "run": "leokit/run@1",
    "runs": "leokit/run@1",
    "features": "leokit/features@1",
    "classifier": "leokit/classifier@1",
    "evals": "leokit/eval@1",
}
NO_VALUE = ""  # the placeholder in --help of an option that takes none
COMMON: dict[str, Any] = {  # options that stand before the subcommand or after it
    "quiet": typer.Option(
        "--quiet", "-q", metavar=NO_VALUE, help="Print results and errors only.", rich_help_panel=_SHOWN
    ),
    "verbose": typer.Option(
        "--verbose", "-v", metavar=NO_VALUE, help="Show the traceback of an error.", rich_help_panel=_SHOWN
    ),
    "no_progress": typer.Option(
        "--no-progress", metavar=NO_VALUE, help="Show no progress bar.", rich_help_panel=_SHOWN
    ),
}


def add_command(
    app: typer.Typer,
    name: str,
    kind: type[StageConfig],
    body: Body[StageConfig],
    *,
    table: str | None = None,
    panel: str | None = None,
) -> None:
    """Add the subcommand `name`: options from the fields of `kind`, help from the docstring of `body`.

    Args:
        app: where to add it.
        name: of the subcommand.
        kind: its configuration class.
        body: what it does with a configuration; it writes to the output it is given.
        table: where its options stand in a config file, by default under its name.
        panel: the heading under which the help of `app` lists it.
    """

    def callback(context: typer.Context, **options: Any) -> None:
        shown = {key: options.pop(key) for key in ("config", "print_config", "dry_run", "json")}
        before = context.obj or Common()
        common = Common(**{key: bool(options.pop(key)) or getattr(before, key) for key in COMMON})
        output = Output(common, json=bool(shown["json"]), dry_run=bool(shown["dry_run"]))
        given = {key: value for key, value in options.items() if value is not None}
        raise typer.Exit(_run(table or name, kind, body, given, shown, output))

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *(_parameter(field) for field in describe(kind)), *_shown_parameters()]
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    paragraphs = (inspect.getdoc(body) or "").split("\n\n")
    text = "\n\n".join(" ".join(text.split()) for text in paragraphs)
    app.command(name, help=text, rich_help_panel=panel)(callback)


def _run(
    table: str,
    kind: type[StageConfig],
    body: Body[StageConfig],
    given: Mapping[str, Any],
    shown: Mapping[str, Any],
    output: Output,
) -> int:
    """Build the configuration and run the body; the exit code. The border at which errors become one line."""
    try:
        config = layered(table, kind, given, shown["config"], output.note)
        if shown["print_config"]:
            plain = {key: _plain(value) for key, value in asdict(config).items()}
            output.text(json.dumps(plain) + "\n" if output.json else to_toml(plain))
        else:
            _check(config)
            body(config, output)
        sys.stdout.flush()
    except Interrupted as error:
        output.stopped(str(error))
        return error.exit_code
    except LeokitError as error:
        if output.common.verbose:
            traceback.print_exc()
        output.error(str(error))
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return _PIPE_CLOSED
        if output.common.verbose:
            traceback.print_exc()
        output.error(f"{error.strerror or error}: {error.filename or 'no file named'}.")
        return LeokitError.exit_code
    except KeyboardInterrupt:
        output.stopped("Stopped. The same command goes on from what is kept, or begins again.")
        return Interrupted.exit_code
    return 0


def _check(config: Any) -> None:
    """Refuse what can be told to be wrong before the seconds that the import of torch takes.

    Raises:
        UsageError, DataError, ArtifactError: as the stage would.
    """
    from leokit import manifest
    from leokit.checks import check
    from leokit.images.classes import check_level
    from leokit.images.scan import scan

    check_level(getattr(config, "class_level", None))

    if not getattr(config, "card", True):  # a report's --run is its card's alone, and the stage says so
        return
    named = []
    for name, schema in _ARTIFACTS.items():
        given = getattr(config, name, None) or ()
        named += [(place, schema) for place in (given if isinstance(given, tuple) else (given,))]
    if len(named) == 1 and not os.path.isdir(named[0][0]):  # of several, whether they go together comes first
        manifest.read(*named[0])
    images = getattr(config, "images", None)
    if images is not None and not os.path.isdir(images):
        scan(images)
    check(config)


def _reader_is_gone() -> bool:
    """Whether who reads standard output has seen enough, as `head`; then nothing more is written there."""
    asked = select.poll()
    asked.register(sys.stdout.fileno(), select.POLLOUT)
    gone = any(event & select.POLLERR for _, event in asked.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def layered(
    name: str, kind: type[StageConfig], given: Mapping[str, Any], file: Path | None, note: Callable[[str], None]
) -> StageConfig:
    """The configuration from flags and environment (`given`), before a file, before a preset, before the defaults."""
    values = {**(yielding(read_toml(file, name), given) if file else {}), **given}
    if kind is MetaTrainConfig:
        values, chosen = with_preset(values)
        if chosen:
            note(chosen)
    return build(kind, values)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _parameter(field: FieldInfo) -> inspect.Parameter:
    """A field as typer takes it: unset is None, so that only what the user gave ranks before file and preset."""
    flag = "--" + field.name.replace("_", "-")
    variable = f"LEOKIT_{field.name.upper()}"
    kind: Any = list[Path] if field.type == tuple[Path, ...] else field.type
    default: Any = None
    if field.argument:
        marker: Any = typer.Argument(help=field.help, metavar=field.name.upper(), show_default=False)
        if field.default is MISSING:
            default = inspect.Parameter.empty
        else:
            kind = Optional[kind]  # noqa: UP045  (a union with None of any annotation)
    else:
        # What is on by default, or may be by a preset or a file, can be switched off.
        both = field.type is bool and (field.default is True or not field.outside)
        flags = [f"{flag}/--no-{flag[2:]}"] if both else [flag]
        choices = _choices(field.type)
        text = f"{field.help} One of {', '.join(choices)}." if choices else field.help
        if field.default not in (None, ()) and field.type is not bool:
            text += f" (default: {field.default})"
        marker = typer.Option(
            *flags,
            help=text,
            metavar=NO_VALUE if field.type is bool else "<choice>" if choices else None,
            envvar=variable,
            show_envvar=False,
            show_default=False,
            rich_help_panel=_RUNNING if field.outside and not field.resolved else "Options",
        )
        kind = Optional[kind]  # noqa: UP045
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, marker]
    )


def _choices(kind: Any) -> list[str]:
    """The values that an option may have, where they are listed: as its placeholder they would leave help no room."""
    listed = [kind, *get_args(kind)]
    return [str(value) for part in listed if get_origin(part) is Literal for value in get_args(part)]


def _shown_parameters() -> list[inspect.Parameter]:
    """What every subcommand has beside its configuration."""
    options = {
        "config": (Path, typer.Option("--config", help="TOML file with options.", rich_help_panel=_SHOWN)),
        "print_config": (
            bool,
            typer.Option(
                "--print-config",
                help="Print the resolved options as TOML and leave.",
                metavar=NO_VALUE,
                rich_help_panel=_SHOWN,
            ),
        ),
        "dry_run": (
            bool,
            typer.Option(
                "--dry-run",
                help="Check and say what would be done, and leave.",
                metavar=NO_VALUE,
                rich_help_panel=_SHOWN,
            ),
        ),
        "json": (
            bool,
            typer.Option(
                "--json", help="Print the result as one JSON object.", metavar=NO_VALUE, rich_help_panel=_SHOWN
            ),
        ),
        **{name: (bool, option) for name, option in COMMON.items()},
    }
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[Optional[kind], marker],  # noqa: UP045
        )
        for name, (kind, marker) in options.items()
    ]
