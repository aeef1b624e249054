"""The feature store: embeddings of a data set's images as class-sorted Parquet; the only home of feature Parquet.

Every file belongs to one split and holds whole classes, each as one row group, so that a class can be read without
touching the others. Rows are in the order of classes and then images, bytewise by name.
"""

from leokit.features.layout import SCHEMA, Shard, plan_shards
from leokit.features.store import FeatureStore, FeatureTable
from leokit.features.writing import ShardWriter, facts_of, write_store

__all__ = [
    "SCHEMA",
    "FeatureStore",
    "FeatureTable",
    "Shard",
    "ShardWriter",
    "facts_of",
    "plan_shards",
    "write_store",
]
