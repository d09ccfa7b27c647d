"""incrlt: long-tailed class-incremental learning on Avalanche and PyTorch.

Importing the package is cheap; torch and Avalanche load with the module that needs them.
"""

import importlib

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Load what is used from here when it is first asked for."""
    if name == "LongTailClassifier":
        # by name: a reader of imports would take every module of the package for one that needs torch
        found: object = getattr(importlib.import_module("incrlt.lifecycle.estimator"), name)
        return found
    raise AttributeError(f"module 'incrlt' has no attribute {name!r}")
