"""Backbones: networks with weights that turn images into vectors, and how they want their images; the home of timm."""

from leokit.backbones.backbone import Backbone, embed
from leokit.backbones.layers import Layers, default_layers, layer_names
from leokit.backbones.loading import RANDOM, check_name, decoder_on, hub_repository, is_fetched, load, preprocessing_of
from leokit.backbones.pretrained import load_pretrained, open_pretrained

__all__ = [
    "RANDOM",
    "Backbone",
    "Layers",
    "check_name",
    "decoder_on",
    "default_layers",
    "embed",
    "hub_repository",
    "is_fetched",
    "layer_names",
    "load",
    "load_pretrained",
    "open_pretrained",
    "preprocessing_of",
]
