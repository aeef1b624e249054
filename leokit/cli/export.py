"""`leokit export`."""

from leokit.cli.render import Output, TableData
from leokit.config import ExportConfig


def command(config: ExportConfig, output: Output) -> None:
    """Write a classifier and its backbone as one ONNX file, checked to give the same answers under onnxruntime.

    Its input is the pixels of images as leokit's preprocessing leaves them (bytes, batch x side x side x 3), its output
    their probabilities. Names of classes and preprocessing are in the file's metadata.

    Example: leokit export --classifier leokit-work/classifier --onnx classifier.onnx
    """
    from leokit.stages import export

    if output.dry_run:
        output.plan(export.dry_run(config), "Would export")
        return
    done = export.run(config)
    rows = [
        ["file", str(done.path)],
        ["size", f"{done.bytes / 1e6:.1f} MB"],
        ["input", f"pixels: uint8, batch x {done.image_size} x {done.image_size} x 3"],
        ["output", f"probabilities: float32, batch x {done.classes}"],
        ["largest difference to torch", f"{done.difference:.1g} of a probability, on images of noise"],
    ]
    data = {key: str(value) if key == "path" else value for key, value in vars(done).items()}
    output.result(data, [TableData("ONNX", ["", ""], rows, numeric=False)])
