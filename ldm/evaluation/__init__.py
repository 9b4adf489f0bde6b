"""Scores of generated videos: feature networks, protocols, distances and their uncertainty.

In: videos. Out: scores, each with its protocol.
"""
