"""Backbones: networks with weights that turn images into vectors, and how they want their images; the home of timm."""

from leokit.backbones.backbone import Backbone, embed
from leokit.backbones.loading import RANDOM, decoder_on, load

__all__ = ["RANDOM", "Backbone", "decoder_on", "embed", "load"]
