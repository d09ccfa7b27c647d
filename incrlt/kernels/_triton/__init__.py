"""CUDA kernels in Triton, behind :mod:`incrlt.kernels.triton_backend`. Only :mod:`.heuristics` does without Triton."""
