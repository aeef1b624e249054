"""The floors of the house: a module imports from its own floor or below, and stages do not import each other."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "leokit"

# First match wins; a module imports only from floors at most as high as its own.
FLOORS = [
    ("leokit.cli", 6),
    ("leokit.__main__", 6),
    ("leokit.api", 6),
    ("leokit.estimator", 5),
    ("leokit.stages", 5),
    ("leokit.figures", 5),
    ("leokit.report", 5),
    ("leokit.engine", 4),
    ("leokit.episodes", 3),
    ("leokit.runs", 3),
    ("leokit.checks", 3),
    ("leokit.classifiers", 3),
    ("leokit.evaluations", 3),
    ("leokit.regression.models", 3),
    ("leokit.features", 2),
    ("leokit.backbones", 2),
    ("leokit.leo", 1),
    ("leokit.baselines", 1),
    ("leokit.metrics", 1),
    ("leokit.calibration", 1),
    ("leokit.assessment", 1),
    ("leokit.projection", 1),
    ("leokit.regression", 1),
    ("leokit.randomness", 1),
    ("leokit.space", 1),
    ("leokit.devices", 1),
    ("leokit.distributed", 1),
    ("leokit.images", 1),
    ("leokit.tables", 1),
    ("leokit.parquet", 1),
    ("leokit.errors", 0),
    ("leokit.interrupts", 0),
    ("leokit.memory", 0),
    ("leokit.waiting", 0),
    ("leokit.config", 0),
    ("leokit.manifest", 0),
    ("leokit.provenance", 0),
    ("leokit.splits", 0),
    ("leokit.text", 0),
]
# Libraries that have one home, and what floor 0 must do without.
HOMES = {
    "typer": ("leokit.cli",),
    "rich": ("leokit.cli",),
    "timm": ("leokit.backbones",),
    "matplotlib": ("leokit.figures",),
    "jinja2": ("leokit.report",),
    "yaml": ("leokit.report",),
    "distributed": ("leokit.engine",),
    "pyarrow": ("leokit.features", "leokit.tables"),
}
HEAVY = {"torch", "torchvision", "timm", "pyarrow", "sklearn", "matplotlib"}
ROOT = "leokit"  # the package itself: its version, and later its lazy exports


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path):
    """Every module that a file imports, also inside functions, with the line; `from a import b` counts as a.b too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module, node.lineno
            if node.module == ROOT:
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def floor(module):
    return next((level for prefix, level in FLOORS if module == prefix or module.startswith(f"{prefix}.")), None)


ALL = [(name, path) for name, path in modules() if name != ROOT]


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name for name, _ in ALL])
def test_imports_go_down(name, path):
    own = floor(name)
    assert own is not None, f"{name} stands on no floor: give it one in FLOORS"
    for imported, line in imports(path):
        if imported.split(".")[0] == ROOT and imported not in (ROOT, f"{ROOT}.__version__"):
            other = floor(imported)
            assert other is not None, f"{path}:{line}: {imported} stands on no floor"
            assert other <= own, f"{path}:{line}: {name} (floor {own}) imports {imported} (floor {other})"


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name for name, _ in ALL])
def test_libraries_stay_at_home(name, path):
    for imported, line in imports(path):
        homes = HOMES.get(imported.split(".")[0])
        if homes:
            assert any(name == home or name.startswith(f"{home}.") for home in homes), (
                f"{path}:{line}: {imported} belongs to {homes}"
            )
        if floor(name) == 0:
            assert imported.split(".")[0] not in HEAVY, f"{path}:{line}: floor 0 knows no {imported}"


def test_stages_do_not_import_each_other():
    stages = {name: path for name, path in ALL if re.fullmatch(r"leokit\.stages\.\w+", name)}
    for name, path in stages.items():
        for imported, line in imports(path):
            assert imported == name or imported not in stages, f"{path}:{line}: {name} imports {imported}"


def test_help_imports_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from leokit.cli import app; "
        "result = CliRunner().invoke(app, ['--help']); assert result.exit_code == 0, result.output; "
        f"heavy = {sorted(HEAVY)!r}; print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("extract nosuch", "no image folder at nosuch"),
        ("eval nosuch", "run `leokit meta-train` first"),
        ("meta-train --features nosuch", "run `leokit extract`"),
        ("predict --run nosuch --support nosuch x", "run `leokit meta-train` first"),
        ("predict --classifier nosuch x", "run `leokit fit` first"),
        ("fit", "--support"),
    ],
)
def test_a_wrong_place_is_told_before_torch_is_imported(arguments, words):
    code = (
        "import sys; from typer.testing import CliRunner; from leokit.cli import app; "
        f"result = CliRunner().invoke(app, {arguments.split()!r}); assert result.exit_code in (2, 3, 4); "
        "print(result.output, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert words in done.stdout
    assert done.stdout.endswith("False\n")


def test_package_data_is_declared():
    declared = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "leokit"
    ]
    data = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()]
    for path in data:
        if path.suffix not in (".py", ".pyc"):
            assert any(path.match(pattern) for pattern in declared), f"{path} would be missing from the wheel"
