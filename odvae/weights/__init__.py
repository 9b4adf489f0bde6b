"""Weights: files that hold them, and models loaded from folders or the Hugging Face hub, complete or with an error.

In: a path or hub name. Out: tensors, a model, or an InputError that says what is wrong with which file and what to do.
"""
