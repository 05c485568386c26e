"""Trained models for other programs: written, then held against the one that was trained."""
