"""A model that goes on: one more experience from a run folder alone, versions, the gate before each, answers, export.

The room behind ``incrlt predict``, ``incrlt update``, ``incrlt rollback``, ``incrlt export`` and
``incrlt.LongTailClassifier``. All of them read and write run folders.
"""
