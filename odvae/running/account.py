"""Account of a command's input videos: how many were used, and which were left out for what reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odvae.running.errors import InputError
from odvae.running.files import parse_record, write_json
from odvae.running.text import printable, valid_unicode

ACCOUNT = "account.json"

# Common reasons, so that all stages use the same words.
UNREADABLE = "cannot be decoded"
NO_VIDEO = "holds no video"
TOO_SHORT = "shorter than a clip"
HIGH_RANGE = "of high dynamic range"
NOT_ENCODED = "could not be encoded"
COPY = "same bytes as another"
CHANGED_ENTRY = "cannot be read, or was changed"
BAD_CAPTION = "caption cannot be read"
NOT_A_FILE = "not a file that can be read"

_NAMES_SHOWN, _CLASSES_SHOWN = 3, 5


@dataclass
class Account:
    """Counts of items found = used + left out. `what` is the items' name in the plural."""

    what: str = "videos"
    used: int = 0
    without_caption: int | None = None
    """Number of used items without a caption; None if captions are irrelevant."""
    classes: dict[str, int] = field(default_factory=dict)
    """Number of used items by class."""
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    """Reason -> {name of the item: details}."""
    notes: list[str] = field(default_factory=list)
    """Further sentences for the reader."""

    def use(self, captioned: bool | None = None, label: str | None = None) -> None:
        """Count a used item; `captioned`: whether it has a caption, None if captions are irrelevant."""
        self.used += 1
        if captioned is not None:
            self.without_caption = (self.without_caption or 0) + (not captioned)
        if label is not None:
            self.classes[label] = self.classes.get(label, 0) + 1

    def leave_out(self, name: str, reason: str, details: str = "") -> None:
        """Count an item that is not used. The same name with the same reason counts once."""
        details = details.removeprefix(name).removeprefix(":").strip() or reason
        self.left_out.setdefault(reason, {})[valid_unicode(name)] = valid_unicode(details)

    def add(self, other: Account) -> None:
        """Add the counts, names and notes of another account."""
        self.used += other.used
        if other.without_caption is not None:
            self.without_caption = (self.without_caption or 0) + other.without_caption
        for label, count in other.classes.items():
            self.classes[label] = self.classes.get(label, 0) + count
        for reason, names in other.left_out.items():
            self.left_out.setdefault(reason, {}).update(names)
        self.notes += other.notes

    @property
    def count_left_out(self) -> int:
        return sum(map(len, self.left_out.values()))

    @property
    def found(self) -> int:
        return self.used + self.count_left_out

    @property
    def captioned(self) -> int | None:
        """Number of used items with a caption; None if captions are irrelevant."""
        return None if self.without_caption is None else self.used - self.without_caption

    def table(self) -> str:
        """The account as a short text table; `to_json` has every name."""
        rows = [(f"{self.what} found", str(self.found), ""), ("used", str(self.used), "")]
        rows.append(("left out", str(self.count_left_out), ""))
        for reason, names in sorted(self.left_out.items(), key=lambda item: (-len(item[1]), item[0])):
            rows.append((f"  {reason}", str(len(names)), shown_names(sorted(names))))
        if self.without_caption is not None:
            rows.append(("without a caption", str(self.without_caption), _share(self.without_caption, self.used)))
        if self.classes:
            rows.append(("classes", str(len(self.classes)), most_frequent(self.classes, _CLASSES_SHOWN)))
        name_width, count_width = max(len(name) for name, _, _ in rows), max(len(count) for _, count, _ in rows)
        lines = [f"  {name:<{name_width}}  {count:>{count_width}}  {rest}".rstrip() for name, count, rest in rows]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "found": self.found,
            "used": self.used,
            "left_out": {
                reason: {"count": len(names), "names": dict(sorted(names.items()))}
                for reason, names in sorted(self.left_out.items())
            },
            "without_caption": self.without_caption,
            "classes": dict(sorted(self.classes.items())),
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: object = "account") -> Account:
        """The account in a JSON object. Raises InputError with `source` where a value is missing or of a wrong type."""
        try:
            left_out = {reason: dict(group["names"]) for reason, group in values["left_out"].items()}
            kept = {name: values[name] for name in ("what", "used", "without_caption", "classes", "notes")}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{source} was damaged: its account cannot be read ({error})") from None
        return parse_record(cls, {**kept, "left_out": left_out}, source)

    def save(self, folder: Path) -> None:
        """Write all counts and names to `account.json` in a stage's folder."""
        write_json(folder / ACCOUNT, self.to_json())


def _share(part: int, whole: int) -> str:
    return f"({part / whole:.0%} of the used)" if part and whole else ""


def shown_names(names: Sequence[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(printable(name) for name in names[:_NAMES_SHOWN])
    return shown + (", ..." if len(names) > _NAMES_SHOWN else "")


def most_frequent(counts: Mapping[str, int], most: int) -> str:
    """The `most` names with the largest counts, and the number of the others, as text."""
    shown = ", ".join(f"{printable(name)} ({count})" for name, count in Counter(counts).most_common(most))
    return shown + (f" and {len(counts) - most} more" if len(counts) > most else "")
