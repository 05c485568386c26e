"""The one value of a mask that stands for no class."""

IGNORE_INDEX = 255
"""Pixels with this value, in masks of class indices and of ids alike, train and score nothing."""
