"""One large language model on a cluster of unequal machines, by tensor parallelism.

This module imports nothing, so that `launch.py` can read it before the environment exists.
"""

__version__ = "0.1.0"
