"""One run, or several next to each other, as one HTML file.

In: run folders, and the validation shards if they are on this machine. Out: a page with curves, scores with intervals,
the confusion matrix, the worst and best images, and the settings.
"""
