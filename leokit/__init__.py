"""leokit: few-shot image classification by Latent Embedding Optimization, from raw images to predictions."""

from importlib.metadata import version

__version__ = version("leokit")
