"""The feature store: embeddings of a data set's images as class-sorted Parquet; the only home of feature Parquet.

Every file belongs to one split and holds whole classes, each as one row group, so that a class can be read without
touching the others. Rows are in the order of classes and then images, bytewise by name. Embeddings that others made
are found and read by `find_source`; `store_faults` looks at every row of a store.
"""

from leokit.features.checking import store_faults
from leokit.features.labelled import LabelledRows
from leokit.features.layout import FAILURES, SCHEMA, Shard, plan_shards
from leokit.features.sources import Source, find_source
from leokit.features.store import FeatureStore, FeatureTable, read_recorded
from leokit.features.writing import ShardWriter, facts_of, write_store

__all__ = [
    "FAILURES",
    "SCHEMA",
    "FeatureStore",
    "FeatureTable",
    "LabelledRows",
    "Shard",
    "ShardWriter",
    "Source",
    "facts_of",
    "find_source",
    "plan_shards",
    "read_recorded",
    "store_faults",
    "write_store",
]
