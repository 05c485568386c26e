"""The same run on other numbers of processes: whether the weights are equal, and whether the settings promise it."""
