"""A run, or several beside each other, as one HTML file: curves, classes, confusion, pictures, settings."""
