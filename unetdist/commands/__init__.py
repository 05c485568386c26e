"""Commands that nothing imports.

In: settings, shards, finished runs. Out: a verdict (doctor), a page (report), or runs set against each other
(equivalence, ablation).
"""
