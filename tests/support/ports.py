"""Ports of this machine for servers and ranks that tests start."""

import random
import socket

_BELOW_WHAT_CLIENTS_GET = range(20_000, 32_000)


def free_port() -> int:
    """A port at which nothing listens; no connection is given it, so it stays free until the test uses it.

    A port that the system chooses (port 0) is one of those that it also gives to the other ends of connections: what
    is closed now may be taken a moment later by any client.
    """
    choose = random.SystemRandom()  # a test's seed must not give two processes one port
    for _ in range(100):
        port = choose.choice(_BELOW_WHAT_CLIENTS_GET)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port was found in 100 tries")
