"""Common code of all commands: settings, errors, run folder, stages, worker processes, distributed ranks.

In: a YAML file, a command line, a folder. Out: checked settings, complete files, one clear error per mistake.
"""
