"""What every command stands on: settings, errors, the run folder, processes and their ranks.

In: a YAML file, a command line, a folder. Out: checked settings, whole files, one clear error a mistake.
"""
