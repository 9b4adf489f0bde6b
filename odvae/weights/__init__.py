"""Loading of weights files and of pretrained models from folders or the Hugging Face hub, with clear errors.

In: a path or hub name. Out: tensors, a model, or an InputError with the broken file, what is wrong and what to do.
"""
