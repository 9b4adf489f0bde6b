"""What packing found: `packing.json`, and the same for a person to read."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from odvae.running.commands import command_line


@dataclass
class PackingReport:
    """What went into the shards and what did not, and of what input (`input` is its identity)."""

    videos: int = 0
    images: int = 0
    shards: int = 0
    frames: int = 0
    seconds: float = 0.0
    bytes: int = 0
    """Of all shards."""
    longest_seconds: float = 0.0
    shortest_seconds: float = 0.0
    median_seconds: float = 0.0
    sizes: dict[str, int] = field(default_factory=dict)
    """Videos and images by WIDTHxHEIGHT, the most frequent first."""
    rates: dict[str, int] = field(default_factory=dict)
    """Videos by frames per second."""
    variable_rate: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    without_caption: int = 0
    rows_without_video: int = 0
    rejected: dict[str, str] = field(default_factory=dict)
    """File -> why it is not in the shards."""
    input: str = ""

    def add(self, about: dict, is_image: bool) -> None:
        """Count one sample by its .json."""
        self.images += is_image
        self.videos += not is_image
        self.frames += about["frames"]
        self.without_caption += not about["caption"]
        _count(self.sizes, f"{about['width']}x{about['height']}")
        if about.get("label") is not None:
            _count(self.classes, about["label"])
        if not is_image:
            self._durations.append(about["seconds"])
            self.variable_rate += about["variable_rate"]
            _count(self.rates, f"{about['fps']:.2f}".rstrip("0").rstrip("."))

    def finish(self) -> None:
        """Fill in what is known only at the end."""
        durations = sorted(self._durations)
        self.seconds = round(sum(durations), 3)
        if durations:
            self.shortest_seconds, self.longest_seconds = round(durations[0], 3), round(durations[-1], 3)
            self.median_seconds = round(median(durations), 3)
        for name in ("sizes", "rates", "classes"):
            counts = Counter(getattr(self, name))
            setattr(self, name, dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))

    def __post_init__(self) -> None:
        self._durations: list[float] = []


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def describe(report: PackingReport, out: Path) -> str:
    """What a person reads after packing."""
    lines = [
        f"{report.videos} videos ({report.frames} frames, {report.seconds:.0f} s) in {report.shards} shards: {out}"
    ]
    table = {
        "images": str(report.images) if report.images else "",
        "size": f"{report.bytes / 1e6:.1f} MB",
        "durations": f"{report.shortest_seconds:.1f} to {report.longest_seconds:.1f} s, median "
        f"{report.median_seconds:.1f} s",
        "sizes": _most_frequent(report.sizes),
        "rates": _most_frequent(report.rates) + (f"; {report.variable_rate} variable" if report.variable_rate else ""),
        "classes": f"{len(report.classes)}: {_most_frequent(report.classes)}" if report.classes else "",
        "without a caption": str(report.without_caption),
        "table rows without a video": str(report.rows_without_video) if report.rows_without_video else "",
    }
    lines += [f"  {name:<28}{value}" for name, value in table.items() if value]
    lines.append(f"skipped: {len(report.rejected)}")
    return "\n".join(lines) + (f"\n{list_rejects(report)}" if report.rejected else "")


def list_rejects(report: PackingReport) -> str:
    return "\n".join(f"  {reason}" for reason in report.rejected.values())


def _most_frequent(counts: dict[str, int], most: int = 5) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:most])
    return shown + (f" and {len(counts) - most} more" if len(counts) > most else "")


def next_command(out: Path) -> str:
    return f"{command_line('train_vae')} --config CONFIG.yaml data.shards={shlex.quote(str(out))}"
