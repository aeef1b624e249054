"""`leokit extract`."""

from leokit.cli.render import Output, TableData
from leokit.config import ExtractConfig


def command(config: ExtractConfig, output: Output) -> None:
    """Turn a tree of images into features in Parquet, by a pretrained backbone.

    Example: leokit extract images --splits miniimagenet --image-size 84
    """
    from leokit.stages import extract

    raise SystemExit(extract)
