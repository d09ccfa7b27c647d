"""Backbones, one file per family: ``resnet32`` is the variant of that name in ``resnet.py``."""
