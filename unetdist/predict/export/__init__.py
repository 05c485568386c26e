"""Writes trained models for other programs, and compares the result with the trained model."""
