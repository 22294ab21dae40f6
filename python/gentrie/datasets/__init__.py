"""Catalogs to try things on: made here, the same everywhere, without a network.

Three synthetic catalogs have the sizes and title lengths of the three in Table A2 of RecLM-cgen, and branch
as real titles of those lengths do. :meth:`Catalog.from_jsonl` reads a catalog of your own.
"""

from gentrie.datasets._generate import NAMES, load
from gentrie.datasets.catalog import Catalog
from gentrie.datasets.histories import Histories, HistorySplit

__all__ = ["NAMES", "Catalog", "Histories", "HistorySplit", "load"]
