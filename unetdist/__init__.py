"""unetdist trains U-Nets for semantic segmentation, with the same result on any number of processes."""

__version__ = "0.1.0"
