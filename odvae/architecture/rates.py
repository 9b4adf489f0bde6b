"""Compression rates by level: which levels of the network halve time, and which halve space.

Each level but the last may end with a layer that halves time, space or both (in the decoder: doubles). By default the
first levels halve space and the last of these places halve time:

| rate            | levels | space is halved after levels | time is halved after levels |
|-----------------|--------|------------------------------|-----------------------------|
| 1x8x8           | 4      | 0, 1, 2                      |                             |
| 2x8x8           | 4      | 0, 1, 2                      | 2                           |
| 4x8x8 (OD-VAE)  | 4      | 0, 1, 2                      | 1, 2                        |
| 8x8x8           | 4      | 0, 1, 2                      | 0, 1, 2                     |
| 4x4x4           | 3      | 0, 1                         | 0, 1                        |
| 8x4x4           | 4      | 0, 1                         | 0, 1, 2                     |
| 4x16x16         | 5      | 0, 1, 2, 3                   | 2, 3                        |
| 8x32x32         | 6      | 0, 1, 2, 3, 4                | 2, 3, 4                     |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from odvae.running.errors import InputError


class Halvings(NamedTuple):
    """Whether time and space are halved after each level but the last, from full resolution down."""

    time: tuple[bool, ...]
    space: tuple[bool, ...]

    @property
    def ratios(self) -> tuple[int, int]:
        """(temporal, spatial) compression ratio."""
        return 2 ** sum(self.time), 2 ** sum(self.space)


class Growth(NamedTuple):
    """A network with the levels of a smaller one and `outer` new ones before them, at full resolution."""

    outer: int
    block_out_channels: tuple[int, ...]
    halvings: Halvings

    def arguments(self) -> dict[str, Any]:
        """The arguments of ODVAE for it."""
        temporal_ratio, spatial_ratio = self.halvings.ratios
        return {
            "block_out_channels": self.block_out_channels,
            "temporal_compression_ratio": temporal_ratio,
            "spatial_compression_ratio": spatial_ratio,
            "temporal_downsample": list(self.halvings.time),
            "spatial_downsample": list(self.halvings.space),
        }


def name_rate(ratios: tuple[int, int]) -> str:
    """(4, 8) -> 4x8x8."""
    return f"{ratios[0]}x{ratios[1]}x{ratios[1]}"


def choose_halvings(
    levels: int,
    temporal_ratio: int,
    spatial_ratio: int,
    temporal_downsample: Sequence[bool] | None = None,
    spatial_downsample: Sequence[bool] | None = None,
) -> Halvings:
    """The halvings of a network of this many levels: as given, by default as in the table above.

    Raises InputError for ratios that these levels cannot give.
    """
    places = levels - 1
    time, space = temporal_downsample, spatial_downsample
    if time is None:
        count = _count_halvings(temporal_ratio, places, "temporal")
        time = (False,) * (places - count) + (True,) * count
    if space is None:
        count = _count_halvings(spatial_ratio, places, "spatial")
        space = (True,) * count + (False,) * (places - count)
    _check_given(time, temporal_ratio, places, "temporal")
    _check_given(space, spatial_ratio, places, "spatial")
    return Halvings(tuple(time), tuple(space))


def choose_growth(
    block_out_channels: Sequence[int],
    source: Halvings,
    temporal_compression_ratio: int,
    spatial_compression_ratio: int | None = None,
    temporal_downsample: Sequence[bool] | None = None,
    spatial_downsample: Sequence[bool] | None = None,
) -> Growth:
    """How a network with these channels and `source`'s halvings becomes one of a higher rate.

    What the source's levels cannot give, new levels of its first width give at full resolution; spatial ratio None: the
    source's. By default time is halved where the source halves it, then in the last free places.

    Raises InputError for a rate below the source's, and for halvings that do not contain the source's.
    """
    places = len(source.space)
    ratio = temporal_compression_ratio
    wanted = spatial_compression_ratio or source.ratios[1]
    _check_not_less(ratio, source.ratios[0], "temporal")
    _check_not_less(wanted, source.ratios[1], "spatial")
    more_space = (wanted // source.ratios[1]).bit_length() - 1
    more_time = (ratio // source.ratios[0]).bit_length() - 1
    given = temporal_downsample if temporal_downsample is not None else spatial_downsample
    outer = max(more_space, more_time - source.time.count(False)) if given is None else len(given) - places
    space = spatial_downsample
    if space is None:
        space = (True,) * more_space + (False,) * (outer - more_space) + source.space
    time = temporal_downsample
    if time is None:
        time = [False] * outer + list(source.time)
        for place in [i for i, halved in enumerate(time) if not halved][::-1][:more_time]:
            time[place] = True
    halvings = choose_halvings(places + outer + 1, ratio, wanted, time, space)
    kept = Halvings(halvings.time[max(outer, 0) :], halvings.space[max(outer, 0) :])
    lost = any(old and not new for old, new in zip(source.time, kept.time, strict=False))
    if outer < 0 or kept.space != source.space or lost:
        raise InputError(
            f"temporal_downsample={list(halvings.time)}, spatial_downsample={list(halvings.space)} must end with the "
            f"places of the VAE they grow from: time {list(source.time)} (more may be true), space {list(source.space)}"
        )
    return Growth(outer, (block_out_channels[0],) * outer + tuple(block_out_channels), halvings)


def _count_halvings(ratio: int, places: int, axis: str) -> int:
    count = ratio.bit_length() - 1
    if ratio < 1 or ratio != 2**count:
        raise InputError(f"{axis}_compression_ratio={ratio} must be a power of two, since a level halves or does not")
    if count > places:
        raise InputError(
            f"{axis}_compression_ratio={ratio} needs {count} levels that halve and one more; block_out_channels has "
            f"{places + 1}, which give at most {2**places}"
        )
    return count


def _check_given(downsample: Sequence[bool], ratio: int, places: int, axis: str) -> None:
    if len(downsample) != places:
        raise InputError(
            f"{axis}_downsample={list(downsample)} must have {places} values, one for each level of block_out_channels "
            "but the last"
        )
    if 2 ** sum(downsample) != ratio:
        raise InputError(
            f"{axis}_downsample={list(downsample)} compresses by {2 ** sum(downsample)}, but "
            f"{axis}_compression_ratio={ratio}"
        )


def _check_not_less(ratio: int, source: int, axis: str) -> None:
    if ratio < source or (ratio // source).bit_count() != 1 or ratio % source:
        raise InputError(
            f"{axis}_compression_ratio={ratio} cannot begin from a VAE that compresses by {source}: it must be that or "
            f"{source} times a power of two"
        )
