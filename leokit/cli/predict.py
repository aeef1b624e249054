"""`leokit predict`."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leokit import manifest
from leokit.cli.render import Output
from leokit.config import PredictConfig
from leokit.errors import ArtifactError, DataError, UsageError, disk_errors
from leokit.text import visible, visible_json

if TYPE_CHECKING:
    from leokit.stages.predict import Prediction, Predictions


def command(config: PredictConfig, output: Output) -> None:
    """Classify your own images by one or a few examples of each class.

    The examples lie in a folder for each class, or are listed in a CSV file image,label. A line is printed for each
    image as soon as it is known. An image that cannot be read is a line with the reason, and exit code 3 at the end.

    Example: leokit predict photos --support my-classes --run leokit-work/runs/anchored-5way-1shot
    """
    if config.csv:
        _check_csv(config.csv)
    from leokit.stages import predict

    if output.dry_run:
        output.plan(predict.dry_run(config, output.note), "Would predict")
        return
    said: list[str] = []

    def tell(sentence: str) -> None:
        said.append(sentence)
        output.note(sentence)

    with ExitStack() as stack:
        write = stack.enter_context(_csv_file(config.csv)) if config.csv else None
        with output.progress("Preparing") as progress:
            found = predict.run(config, on_progress=progress, on_message=tell)
        for sentence in found.said:
            tell(sentence)
        show = _Json(output, found, said) if output.json else _Lines(output, found)
        images, unreadable, unknown, is_read = 0, 0, 0, True
        for prediction in found:
            images += 1
            unreadable += prediction.error is not None
            unknown += bool(prediction.unknown)
            if write:
                write(prediction)
            try:
                if is_read:
                    show.add(prediction)
            except BrokenPipeError:  # the reader, as `head`, has seen enough; the file is still wanted
                if not write:
                    raise
                is_read = False
        if is_read:
            show.end()
        told_of = found.left_alone()
        if told_of:
            output.note(told_of)
    told = f", {unknown} of them unknown" if found.classifier.withheld.unknown is None and config.unknown_rate else ""
    output.note(f"{images} image{'s'[: images != 1]}{told}.")
    if config.csv:
        output.note(f"In {config.csv}.")
    if not images:
        raise DataError("There was no image to predict: name images, folders with images, or - for a list.")
    if unreadable:
        raise DataError(f"{unreadable} of {images} images could not be read; their lines say why.")


class _Lines:
    """Predictions as lines under a heading, each printed when it is known."""

    def __init__(self, output: Output, found: "Predictions") -> None:
        from rich.cells import cell_len

        self._output, self._length = output, cell_len
        names = [*map(visible, found.classifier.classes), "label"]
        self._width = max(map(cell_len, names)) + (2 if found.classifier.withheld.unknown is None else 0)
        output.line(f"{self._label('label')}  probability  entropy  image")

    def _label(self, text: str) -> str:
        return text + " " * (self._width - self._length(text))

    def add(self, prediction: "Prediction") -> None:
        """Print one."""
        if prediction.error is not None:
            self._output.line(f"{self._label('-')}  {'-':>11}  {'-':>7}  {prediction.image}: {prediction.error}")
            return
        notes = []
        if prediction.unknown:
            notes.append("unknown")
        if len(prediction.top) > 1:
            notes.append("then " + ", ".join(f"{name}: {share:.3f}" for name, share in prediction.top[1:]))
        if prediction.set is not None:
            notes.append("set {" + ", ".join(prediction.set) + "}")
        if prediction.mutual_information is not None:
            notes.append(f"mutual information {prediction.mutual_information:.3f}")
        label = self._label(f"{visible(prediction.label or '')}{' ?' if prediction.unknown else ''}")
        numbers = f"{prediction.probability:>11.3f}  {prediction.entropy:>7.3f}"
        said = f"  ({'; '.join(notes)})" if notes else ""
        self._output.line(f"{label}  {numbers}  {prediction.image}{said}")

    def end(self) -> None:
        """Nothing is left to print."""


class _Json:
    """Predictions as one JSON object, printed line by line."""

    def __init__(self, output: Output, found: "Predictions", said: Sequence[str]) -> None:
        classifier = found.classifier
        head = {
            "classes": list(classifier.classes),
            "method": classifier.method,
            "variant": classifier.variant,
            "temperature": classifier.temperature,
            "notes": list(said),
        }
        self._output, self._first = output, True
        output.text(visible_json(head)[:-1] + ', "predictions": [')

    def add(self, prediction: "Prediction") -> None:
        """Print one."""
        from leokit.stages.predict import to_plain

        self._output.text(("" if self._first else ",") + "\n" + visible_json(to_plain(prediction)))
        self._first = False

    def end(self) -> None:
        """Close the object."""
        self._output.text("\n]}\n")


_COLUMNS = ("image", "label", "probability", "entropy", "unknown", "set", "top", "mutual_information", "error")


def _check_csv(path: Path) -> None:
    if path.exists():
        raise ArtifactError(f"--csv {path} is there already: delete it, or choose another name.")
    if path.suffix.lower() != ".csv":
        raise UsageError(f"--csv {path}: its name must end in .csv.")


@contextmanager
def _csv_file(path: Path) -> Iterator[Any]:
    """A CSV file that is there once it is whole; yields what writes a prediction."""
    with disk_errors(path.parent, "--csv"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with manifest.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            yield lambda prediction: writer.writerow(_cells(prediction))


def _cells(prediction: "Prediction") -> list[str]:
    from leokit.tables import spreadsheet_safe

    values = vars(prediction) | {
        "set": None if prediction.set is None else "; ".join(prediction.set),
        "top": "; ".join(f"{name} {share:.6f}" for name, share in prediction.top) if len(prediction.top) > 1 else None,
    }
    return [spreadsheet_safe(_text(values[name])) for name in _COLUMNS]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}" if isinstance(value, float) else str(value)
