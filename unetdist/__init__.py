"""unetdist trains U-Nets for semantic segmentation, with the same result on any number of processes."""

import os

__version__ = "0.1.0"

STARTED_BY = (os.getpid(), os.getppid())
"""This process and its parent before torch was loaded, which takes seconds: see `signals.follow_launcher`."""
