"""Parts of a session for its tests, importable by the processes that run them."""

import time


def work(session):
    return {"folder": str(session.folder)}


def fail(_session):
    raise ValueError("no such kernel")


def hang(_session):
    time.sleep(600)
