"""Scores of generated videos: feature networks, protocols, distances, their uncertainty.

In: videos. Out: numbers, each with its protocol.
"""
