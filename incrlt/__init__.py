"""incrlt: long-tailed class-incremental learning on Avalanche and PyTorch.

Importing the package is cheap; torch and Avalanche load with the module that needs them.
"""

__version__ = "0.1.0"
