"""The same run on several numbers of processes: are the weights equal, and do the settings promise it?

In: settings and numbers of processes. Out: a table that compares samples, losses and weights step by step, the tensor
and the step where runs first differ, and the setting that explains it.
"""
