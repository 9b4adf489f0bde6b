"""The report of a packing: `packing.json`, and the text that is printed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from odvae.running.account import Account, most_frequent
from odvae.running.commands import command_line
from odvae.running.files import parse_record, read_object
from odvae.running.text import counted, printable
from odvae.shards.dataset_card import VIDEO, dataset_card

# Number of rejected files that are printed; all are in packing.json.
_SHOWN = 50
_TABLES_SHOWN = 10

# What `datasets` reads of a sample.
_COLUMNS = {
    "mp4": VIDEO,
    "txt": "string",
    "json": {
        **dict.fromkeys(("key", "source", "sha256", "caption", "label"), "string"),
        "captions": ["string"],
        **dict.fromkeys(("frames", "height", "width"), "int64"),
        **dict.fromkeys(("fps", "seconds"), "float64"),
    },
    "__key__": "string",
}

# Names that a note lists.
_NAMED = 5


@dataclass
class PackingReport:
    """What is in the shards and what is not; `input` identifies the packed files and settings."""

    videos: int = 0
    images: int = 0
    shards: int = 0
    frames: int = 0
    seconds: float = 0.0
    bytes: int = 0
    """Total size of the shards."""
    longest_seconds: float = 0.0
    shortest_seconds: float = 0.0
    median_seconds: float = 0.0
    sizes: dict[str, int] = field(default_factory=dict)
    """Number of videos and images by WIDTHxHEIGHT, most frequent first."""
    rates: dict[str, int] = field(default_factory=dict)
    """Number of videos by frames per second."""
    variable_rate: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    without_caption: int = 0
    several_captions: int = 0
    """Videos and images with more than one caption."""
    captioned_share: float = 0.0
    """Share of videos and images with a caption."""
    rows_without_video: int = 0
    tables: list[dict[str, Any]] = field(default_factory=list)
    """The caption tables that were read: their rows, and those that were not used."""
    rejected: dict[str, str] = field(default_factory=dict)
    """File -> the reason why it is not in the shards."""
    account: dict[str, Any] = field(default_factory=dict)
    """All files: found, used, and left out, by reason and with all names."""
    input: str = ""
    part: str = ""
    """The part that this is a report of, such as 3/8; empty for a whole folder."""
    parts: list[str] = field(default_factory=list)
    """`input` of each part, in a folder that was packed in parts."""

    def __post_init__(self) -> None:
        self._durations: list[float] = []
        self._several_pictures: list[str] = []
        self._account = Account.from_json(self.account) if self.account else Account("files")

    def add(self, about: dict, is_image: bool) -> None:
        """Count a sample, given its .json."""
        self.images += is_image
        self.videos += not is_image
        self.frames += about["frames"]
        self.several_captions += len(about.get("captions", ())) > 1
        self._account.use(bool(about["caption"]), about.get("label"))
        _count(self.sizes, f"{about['width']}x{about['height']}")
        if about.get("pictures", 1) > 1:
            self._several_pictures.append(f"{printable(about['source'])} ({about['pictures']})")
        if not is_image:
            self._durations.append(about["seconds"])
            self.variable_rate += about["variable_rate"]
            _count(self.rates, f"{about['fps']:.2f}".rstrip("0").rstrip("."))

    def reject(self, name: str, reason: str, exactly: str) -> None:
        """Count a file that is not in the shards; `exactly` has the details and may start with its name."""
        exactly = exactly if exactly.startswith(name) else f"{name}: {exactly}"
        self.rejected[printable(name)] = printable(exactly)
        self._account.leave_out(name, reason, exactly)

    def note(self, sentence: str) -> None:
        """Add a sentence for the reader of the report."""
        self._account.notes.append(sentence)

    def finish(self) -> None:
        """Compute the values that are known only at the end."""
        durations = sorted(self._durations)
        self.seconds = round(sum(durations), 3)
        if durations:
            self.shortest_seconds, self.longest_seconds = round(durations[0], 3), round(durations[-1], 3)
            self.median_seconds = round(median(durations), 3)
        account = self._account
        self.without_caption, self.classes = account.without_caption or 0, account.classes
        self.captioned_share = round((account.captioned or 0) / account.used, 4) if account.used else 0.0
        if account.used and not account.captioned:
            self.note("no video has a caption: a text-conditional model cannot be trained on these shards")
        if several := sorted(self._several_pictures):
            more = ", ..." if len(several) > _NAMED else ""
            self.note(
                f"{len(several)} image files have several frames or pages, of which only the first is "
                f"used; convert animations to mp4: {', '.join(several[:_NAMED])}{more}"
            )
        for name in ("sizes", "rates", "classes"):
            setattr(self, name, dict(sorted(getattr(self, name).items(), key=lambda item: (-item[1], item[0]))))
        self.account = account.to_json()

    def table(self) -> str:
        """The account of all files, in a few lines."""
        return self._account.table()


def read_report(path: Path) -> PackingReport:
    """The report in a folder of shards. Raises InputError where it was damaged."""
    return parse_record(PackingReport, {"part": "", "parts": []} | read_object(path), path)


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def describe(report: PackingReport, out: Path) -> str:
    """The text that is printed after packing."""
    lines = [
        f"{report.videos} videos ({report.frames} frames, {report.seconds:.0f} s) in {report.shards} shards: {out}"
    ]
    lines += [f"  {name:<28}{value}" for name, value in _facts(report).items() if value]
    lines += [f"  captions of {printable(one['name']):<16}{_use_of(one)}" for one in report.tables[:_TABLES_SHOWN]]
    if len(report.tables) > _TABLES_SHOWN:
        lines.append(f"  captions of {len(report.tables) - _TABLES_SHOWN} tables more; all are in packing.json")
    lines.append(report.table())
    lines.append(f"left out: {len(report.rejected)}")
    return "\n".join(lines) + (f"\n{list_rejects(report)}" if report.rejected else "")


def _facts(report: PackingReport) -> dict[str, str]:
    """What is in the shards, by names; empty where there is nothing to say."""
    return {
        "images": str(report.images) if report.images else "",
        "size": f"{report.bytes / 1e6:.1f} MB",
        "durations": f"{report.shortest_seconds:.1f} to {report.longest_seconds:.1f} s, median "
        f"{report.median_seconds:.1f} s",
        "sizes": most_frequent(report.sizes, 5),
        "rates": most_frequent(report.rates, 5)
        + (f"; {report.variable_rate} variable" if report.variable_rate else ""),
        "with a caption": f"{report.captioned_share:.1%}"
        + (f"; {report.several_captions} have several" if report.several_captions else ""),
        "table rows without a video": str(report.rows_without_video) if report.rows_without_video else "",
    }


def _use_of(table: dict[str, Any]) -> str:
    """The number of a table's videos and rows, and its caption columns, as text."""
    names = ", ".join(printable(name) for name in table.get("columns", ()))
    column = f" (column {names})" if names else ""
    return f"{counted(table['videos'], 'video')}, {counted(table['rows'], 'row')}{column}"


def list_rejects(report: PackingReport) -> str:
    """The files that are not in the shards, one per line; at most the first `_SHOWN`."""
    lines = [f"  {reason}" for reason in list(report.rejected.values())[:_SHOWN]]
    if len(report.rejected) > _SHOWN:
        lines.append(f"  ... and {len(report.rejected) - _SHOWN} more; all are in packing.json")
    return "\n".join(lines)


def card_of(report: PackingReport, command: str) -> str:
    """The card of the folder of shards that `command` has packed."""
    about = (
        "Videos and images with captions as [WebDataset](https://github.com/webdataset/webdataset) shards, a sample of "
        "`KEY.mp4` (of an image `KEY.png` or the like), `KEY.txt` (its caption) and `KEY.json` (size, rate, frames, "
        "source, class and all captions)."
    )
    videos = f"{report.videos} ({report.frames} frames, {report.seconds:.0f} s) in {report.shards} shards"
    facts = {"videos": videos, **_facts(report), "classes": most_frequent(report.classes, 20)}
    example = (
        "from datasets import load_dataset\n\n"
        'samples = load_dataset("FOLDER", split="train", streaming=True)  # a folder, or a name on the hub\n'
        'video = next(iter(samples))["mp4"]["bytes"]\n'
    )
    facts["packed by"] = f"`{command}`" if command else ""
    return dataset_card(
        "Videos in shards", about, facts, example, {"default": "*.tar"}, _COLUMNS, ("webdataset", "video", "odvae")
    )


def next_command(out: Path) -> str:
    return f"{command_line('train_vae')} --config CONFIG.yaml data.shards={shlex.quote(str(out))}"
