"""Prompt accuracy: how often the judge sees in videos what their captions say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from statistics import mean

from ldm.demo.judge import ATTRIBUTES, UNCLEAR, Verdict
from ldm.demo.scenes import AND, parse_caption


def attributes_of(accuracy: Container[str]) -> list[str]:
    """The attributes that a report of `prompt_accuracy` has: speed only where the captions say it."""
    return [name for name in ATTRIBUTES if name in accuracy or name != "speed"]


def mean_accuracy(accuracy: Mapping[str, float]) -> float:
    """The mean over the attributes that a report of `prompt_accuracy` has."""
    return mean(accuracy[name] for name in attributes_of(accuracy))


def prompt_accuracy(verdicts: Sequence[Verdict], captions: Sequence[str]) -> dict:
    """Shares of verdicts that agree with their captions: `color`, `shape`, `motion` in 0..1, and `n` clips; `speed`
    where captions say it, of those that do.

    Where a clip has two shapes, both must agree. "unclear" counts as wrong; `unclear` has its share for each attribute.
    `chance` has the expected accuracy of the same verdicts with the captions in random order. `words` has, for each
    word of the captions, the number `n` of shapes that should have it and the share that has (`accuracy`).

    Raises ValueError for no clips, for another number of captions than verdicts, and for a caption that is not a
    scene's.
    """
    if not verdicts or len(verdicts) != len(captions):
        raise ValueError(f"expected a caption for each verdict, got {len(captions)} for {len(verdicts)}")
    scenes = [parse_caption(caption) for caption in captions]
    report: dict = {"n": len(scenes), "unclear": {}, "chance": {}, "words": {}}
    for attribute in ATTRIBUTES:
        pairs = [
            (getattr(verdict, attribute), AND.join(words))
            for verdict, scene in zip(verdicts, scenes, strict=True)
            if all(words := [getattr(shape, attribute) for shape in scene.shapes])
        ]
        if pairs:
            _add_attribute(report, attribute, pairs)
    return report


def _add_attribute(report: dict, attribute: str, pairs: list[tuple[str, str]]) -> None:
    """Add to a report the accuracy of one attribute, given what was seen in each clip and what the caption says."""
    n = len(pairs)
    predictions, labels = Counter(seen for seen, _ in pairs), Counter(said for _, said in pairs)
    report[attribute] = sum(seen == said for seen, said in pairs) / n
    report["unclear"][attribute] = predictions[UNCLEAR] / n
    report["chance"][attribute] = sum(predictions[word] * labels[word] for word in labels) / n**2
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for seen, said in pairs:
        words = said.split(AND)
        asked.update(words)
        # Of two shapes, one may be as asked; a clip with another number of shapes has none.
        found = seen.split(AND)
        right.update(word for word, one in zip(words, found, strict=False) if word == one and len(found) == len(words))
    report["words"] |= {word: {"n": asked[word], "accuracy": right[word] / asked[word]} for word in sorted(asked)}
