"""Write the pages of docs/reference that follow from the code, or check that they do.

    python docs/generate.py            # writes them
    python docs/generate.py --check    # exit code 1 where one is stale

It stands beside the pages and not in the package, because a wheel has no use for it; as the pipelines it may use every
floor. `tests/e2e/test_docs.py` fails where a page is stale.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from typer.main import get_command

from leokit import errors
from leokit.cli import app
from leokit.config import COMMANDS, PRESETS, FieldInfo, StageConfig, describe

REFERENCE = Path(__file__).parent / "reference"
COMMON = ("config", "print_config", "dry_run", "json", "quiet", "verbose", "no_progress")  # what every command takes
WRITTEN = "<!-- Written by docs/generate.py: change the code and run it, not this page. -->"
CLI_INTRO = """
`leokit [--version] COMMAND … [--quiet|--verbose] [--no-progress]`. What each option is called in a config file, its
limits, and whether it is part of an artifact's id: [configuration](configuration.md). What commands write:
[artifacts](artifacts.md).

A value is taken from the first of these that has it: the command line, the variable of the environment, the file of
`--config`, the preset, the default. Results go to stdout, progress and log to stderr. `NO_COLOR` is honoured.
"""
CONFIG_INTRO = """
`--config FILE.toml` gives any command its options. A file has a table for each command, or no tables and the options
of one command. `--print-config` prints the options of a command as they are resolved, as TOML that `--config` takes.
Keys are the names of the options, with `_` or `-`.

```toml
[extract]
image_size = 84
splits = "miniimagenet"

[meta-train]
preset = "own-images"
shots = 5
patience = 4
```

A value that breaks its type or its limits, an unknown key and an unknown table are errors (exit code 2). Numbers that
are not finite are refused everywhere. What the options mean: [command line](cli.md).

**In the id**: `yes`: the value is part of the artifact's id, so that another value makes another artifact. `resolved`:
what the value resolves to is part of it, as the hash of the weights or the classes of the splits. `no`: the value
cannot change results.
"""
PRESETS_INTRO = """
`leokit meta-train --preset NAME`. Without a name the miniImageNet preset nearest to `--shots` is taken: that of 1 shot
up to 2, else that of 5. A preset ranks below every other way to give a value, so `--shots`, `--steps` or `--seed` may
be given beside it.
"""


def main(arguments: list[str]) -> int:
    """Write or check the pages; the exit code."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path} is stale: run python docs/generate.py", file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        path.write_text(pages()[path], encoding="utf-8")
        print(path)
    return 0


def pages() -> dict[Path, str]:
    """The text of each generated page, by its path."""
    written = {"cli.md": _cli(), "configuration.md": _configuration()}
    return {REFERENCE / name: "\n".join([WRITTEN, *lines]).rstrip() + "\n" for name, lines in written.items()}


def kinds() -> dict[str, type]:
    """The configuration class of each table of a config file, in the order of `COMMANDS`."""
    found = {
        re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__.removesuffix("Config")).lower(): kind
        for kind in StageConfig.__constraints__
    }
    return {table: found[table] for table in COMMANDS}


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group of commands below `leokit`, with its words, in the order of `--help`."""

    def below(group: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, command in group.commands.items():
            yield (*words, name), command
            if hasattr(command, "commands"):
                yield from below(command, (*words, name))

    yield from below(get_command(app), ())


# The command line


def _cli() -> Iterator[str]:
    yield from ["", "# Command line", CLI_INTRO.rstrip(), ""]
    yield from _table(["before the command", "what it does"], _before_the_command())
    yield ""
    yield from _table(["with every command", "what it does"], _with_every_command())
    yield from ["", "## Exit codes", ""]
    yield from _table(["code", "when"], _exit_codes())
    known = kinds()
    for words, command in commands():
        title = " ".join(("leokit", *words))
        yield from ["", f"## {title}", "", *_paragraphs(command.help or "")]
        if not hasattr(command, "commands"):
            yield from _options(title, command, known["-".join(words)])


def _before_the_command() -> Iterator[list[str]]:
    for option in get_command(app).params:
        if option.name not in ("install_completion", "show_completion"):
            yield [", ".join(_code(name) for name in option.opts), option.help or ""]
    yield [_code("--install-completion"), "Complete commands and options by Tab in the shell that is used now."]
    yield [_code("--show-completion"), "Print what that would install."]
    yield [", ".join(map(_code, ("--help", "-h"))), "Explain, as every command does."]


def _with_every_command() -> Iterator[list[str]]:
    command = next(command for words, command in commands() if words == ("extract",))
    for option in command.params:
        if option.name in COMMON:
            yield [_code(option.opts[0] + (" FILE" if option.name == "config" else "")), option.help]


def _exit_codes() -> Iterator[list[str]]:
    yield ["0", "Done, or done already."]
    named = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LeokitError)]
    for kind in sorted(named, key=lambda kind: kind.exit_code):
        text = re.sub(r" \(exit code \d+\)", "", (kind.__doc__ or "").partition("\n")[0])
        text = text.replace("; what was done is kept and the same command goes on from there", ", with the state kept")
        yield [str(kind.exit_code), text]


def _paragraphs(text: str) -> Iterator[str]:
    """The help of a command; its example as code."""
    for paragraph in text.split("\n\n"):
        label, found, example = paragraph.partition("Example: ")
        yield f"Example: {_code(example)}" if found and not label else paragraph
        yield ""


def _options(title: str, command: Any, kind: type) -> Iterator[str]:
    fields = {field.name: field for field in describe(kind)}
    own = [option for option in command.params if option.name not in COMMON]
    missing = [option.name for option in own if option.name not in fields]
    assert not missing, f"{title}: {missing} are no fields of {kind.__name__}"
    places = [_argument(fields[option.name]) for option in own if fields[option.name].argument]
    yield _code(" ".join([title, *places, "[OPTIONS]"]))
    yield ""
    rows = [_option_row(option, fields[option.name]) for option in own]
    if rows:
        yield from _table(["option", "what it does", "default", "variable"], rows)


def _argument(field: FieldInfo) -> str:
    name = field.name.upper()
    if get_origin(field.type) is tuple:
        name += "…"
    return name if field.default is MISSING else f"[{name}]"


def _option_row(option: Any, field: FieldInfo) -> list[str]:
    choices = _choices(field.type)
    text = f"{field.help} One of {', '.join(map(_code, choices))}." if choices else field.help
    if field.argument:
        return [_code(_argument(field)), text, "", ""]
    flags = [*option.opts, *option.secondary_opts]
    value = "" if bool in _members(field.type) else f" {_metavar(field)}"
    shown = [_code(flags[0] + value), *map(_code, flags[1:])]
    return [" / ".join(shown), text, _default(field), _code(option.envvar)]


def _metavar(field: FieldInfo) -> str:
    kinds = _members(field.type)
    if get_origin(kinds[0]) is tuple:
        return "PATH" if get_args(kinds[0])[-1] is Ellipsis else "A B C"
    names = {int: "N", float: "X", Path: "PATH"}
    return "CHOICE" if get_origin(kinds[0]) is Literal else names.get(kinds[0], "TEXT")


# The configuration


def _configuration() -> Iterator[str]:
    yield from ["", "# Configuration", CONFIG_INTRO.rstrip()]
    for table, kind in kinds().items():
        yield from ["", f"## [{table}]", ""]
        described = describe(kind)
        hints = get_type_hints(kind, include_extras=True)
        rows = [
            [
                _code(field.name),
                _type(field.type),
                _limits(get_args(hints[field.name])[1:]),
                _default(field),
                "resolved" if field.resolved else "no" if field.outside else "yes",
            ]
            for field in described
        ]
        yield from _table(["key", "type", "limits", "default", "in the id"], rows) if rows else ["No keys."]
    yield from ["", "## Presets", PRESETS_INTRO.rstrip(), ""]
    yield from _presets()


def _presets() -> Iterator[str]:
    texts = {name: (files("leokit") / "presets" / f"{name}.toml").read_text(encoding="utf-8") for name in PRESETS}
    for name, text in texts.items():
        comment = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
        yield f"- {_code(name)}: {comment}"
    yield ""
    values = {name: tomllib.loads(text) for name, text in texts.items()}
    keys = [field.name for field in describe(kinds()["meta-train"])]
    rows = [
        [_code(key), *(_value(values[name][key]) if key in values[name] else "" for name in PRESETS)]
        for key in keys
        if any(key in of for of in values.values())
    ]
    yield from _table(["key", *PRESETS], rows)


# Parts of both


def _members(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have, None left out."""
    if get_origin(kind) in (Union, UnionType):
        return tuple(member for member in get_args(kind) if member is not NoneType)
    return (kind,)


def _choices(kind: Any) -> list[str]:
    return [str(value) for member in _members(kind) if get_origin(member) is Literal for value in get_args(member)]


def _type(kind: Any) -> str:
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
    parts = []
    for member in _members(kind):
        if get_origin(member) is Literal:
            parts += [", ".join(map(_code, _choices(member)))]
        elif get_origin(member) is tuple:
            inside = get_args(member)
            many = inside[-1] is Ellipsis
            parts.append("list of paths" if many else f"list of {len(inside)} {names[inside[0]]}s")
        else:
            parts.append(names[member])
    return " or ".join(parts)


def _limits(markers: tuple[Any, ...]) -> str:
    """The range that markers allow, as `0 ≤ value < 1`."""
    signs = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
    found = []
    for marker in markers:
        for kind, (sign, name) in signs.items():
            if isinstance(marker, kind):
                value = getattr(marker, name)
                found.append(f"{sign} {'2⁶³' if value == 2**63 else f'{value:g}'}")
    return ", ".join(found)


def _default(field: FieldInfo) -> str:
    if field.default is MISSING:
        return "required"
    return "" if field.default in (None, ()) else _value(field.default)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return _code("true" if value else "false")
    return _code(f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value))


def _code(text: str) -> str:
    return f"`{text}`"


def _table(columns: list[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
