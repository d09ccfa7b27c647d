"""incrlt: long-tailed class-incremental learning on Avalanche and PyTorch.

Importing the package is cheap; torch and Avalanche load with the module that needs them.
"""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Load what is used from here when it is first asked for."""
    if name == "LongTailClassifier":
        from incrlt.lifecycle.estimator import LongTailClassifier

        return LongTailClassifier
    raise AttributeError(f"module 'incrlt' has no attribute {name!r}")
