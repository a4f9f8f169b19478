"""Small collections, and all that a refused change must leave alone."""

import numpy as np

SHAPE = (2, 3)
NOTICE = {  # what the DMCA asks of one
    "signature": "Jane Roe",
    "work": "a painting",
    "material": "row a",
    "contact": "1 Main Street",
    "good_faith": "yes",
    "accuracy": "yes",
    "authority": "yes",
}


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float16)


def state(collection):
    """Everything that a refused change must leave alone."""
    return collection.versions(), collection.source_keys(), collection.digests(), collection.segments()
