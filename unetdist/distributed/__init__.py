"""The processes of a run.

In: what a launcher set up. Out: a checked process group (`World`), collectives, one agreed answer to signals, and an
end to a run in which a process hangs.
"""
