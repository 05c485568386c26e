"""Settings and the terminal.

In: YAML files, command lines, log records. Out: checked, frozen dataclasses; log lines, progress bars and exit codes;
texts without the passwords of URLs.
"""
