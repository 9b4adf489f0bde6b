"""Fuzzing of everything that is read from files: broken input must be refused by a clear error, or read.

In: small valid files of every kind, made here. Out: a table of what their mutations did, and each offending input.
"""
