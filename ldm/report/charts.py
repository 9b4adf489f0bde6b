"""Charts of the report pages: SVG in the page's CSS colors, for its light and its dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from itertools import count, cycle

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Placeholder colors, replaced by the page's CSS variables in the SVG: matplotlib does not accept variables.
INK, LINE = "#010203", "#010204"
SERIES = ("#020001", "#020002", "#020003", "#020004", "#020005", "#020006")
_VARIABLES = {INK: "var(--soft)", LINE: "var(--line)"} | {
    color: f"var(--series-{i})" for i, color in enumerate(SERIES, start=1)
}
_chart_count = count()

Points = Sequence[tuple[float, float]]


def curve(title: str, x_label: str, panels: Mapping[str, Mapping[str, Points]], log: bool = False) -> Markup:
    """Line plots that share their x axis, one panel below the other: {y label: {line's name: points}}."""
    with _figure(title, len(panels), height=2.5 if len(panels) == 1 else 1.7 * len(panels)) as (axes, svg):
        for axis, (label, lines) in zip(axes, panels.items(), strict=True):
            for color, (name, points) in zip(cycle(SERIES), lines.items(), strict=False):
                if points:
                    few = len(points) <= 12
                    axis.plot(*zip(*points, strict=True), color=color, linewidth=1.6, label=name,
                              marker="o" if few else None, markersize=3.5)  # fmt: skip
            axis.set_ylabel(label)
            if log:
                axis.set_yscale("log")
            if len(lines) > 1:
                axis.legend(frameon=False, fontsize=8, labelcolor=INK)
        axes[-1].set_xlim(left=0)
        axes[-1].set_xlabel(x_label)
    return svg.markup


def whiskers(title: str, x_label: str, rows: Mapping[str, tuple[float, tuple[float, float] | None]]) -> Markup:
    """One dot with its interval per row: {name: (value, (low, high))}, the first row on top."""
    with _figure(title, 1, height=0.55 + 0.42 * len(rows)) as (axes, svg):
        axis = axes[0]
        for position, (color, (value, interval)) in enumerate(zip(cycle(SERIES), rows.values(), strict=False)):
            if interval is not None:
                axis.plot(interval, (position, position), color=color, linewidth=5, alpha=0.35, solid_capstyle="round")
            axis.plot([value], [position], "o", color=color, markersize=7)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(left=min(0, axis.get_xlim()[0]))
        axis.set_xlabel(x_label)
    return svg.markup


class _Svg:
    markup = Markup()


@contextmanager
def _figure(title: str, panels: int, height: float):
    """Axes in the page's colors, and an object that holds their SVG after the `with` block."""
    svg = _Svg()
    settings = {"svg.fonttype": "none", "svg.hashsalt": f"{title} {next(_chart_count)}", "font.size": 9}
    with plt.rc_context(settings):
        figure, axes = plt.subplots(panels, 1, figsize=(4.8, height), layout="constrained", sharex=True, squeeze=False)
        axes = list(axes[:, 0])
        yield axes, svg
        for axis in axes:
            _color(axis)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg.markup = _for_page(buffer.getvalue(), title)


def _color(axis: Axes) -> None:
    axis.grid(color=LINE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=INK, which="both", length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_color(INK)


def _for_page(svg: str, title: str) -> Markup:
    """The <svg> element alone, as wide as its container, in the page's colors, with a label for screen readers."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img" aria-label="{}">', svg, count=1)
    return Markup(svg.replace('aria-label="{}"', f'aria-label="{escape(title)}"', 1))
