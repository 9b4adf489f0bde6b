"""A page in the browser to try a trained model: generate, compress, and compare the runs of a study.

In: a run or an exported pipeline, and folders of studies. Out: a gradio page; nothing is written into those folders.
"""
