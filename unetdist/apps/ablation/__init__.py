"""Variants of a recipe, each trained with several seeds, side by side."""
