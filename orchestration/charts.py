"""Small charts as inline SVG text: histograms with thresholds, and curves over train_steps. Light, no plotting library.

Colours come from CSS variables of the page (orchestration/report.html.j2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

import numpy as np

Values: TypeAlias = Sequence[float] | np.ndarray

WIDTH, HEIGHT = 540, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 20, 34


@dataclass(frozen=True)
class Limit:
    """A vertical line of a histogram."""

    value: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One line of a chart; equal lengths. Curves of one label share a colour; each has its own trend."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Band:
    """A named stretch of the x axis."""

    label: str
    start: float
    end: float


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values within [low, high], about that many, 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


TAIL_VALUES = 20
"""A histogram of so many values or more may gather its highest twentieth in its last bin."""


def histogram(kept: Values, rejected: Values, limits: Sequence[Limit], unit: str, bins: int = 24) -> str:
    """Counts of values in bins, kept below rejected, with a line at each limit. Raises ValueError without values.

    The last bin takes in a long tail above, so that the bins are narrow where the clips and the limits are.
    """
    if not len(kept) and not len(rejected):
        raise ValueError("a histogram needs at least one value")
    values = np.concatenate([np.asarray(group, np.float64) for group in (kept, rejected)])
    ends = [float(np.min(values)), float(np.max(values)), *(limit.value for limit in limits)]
    low, high = min(ends), max(ends)
    tail = max(float(np.percentile(values, 95)), *(limit.value + abs(limit.value) for limit in limits), low)
    has_tail = len(values) >= TAIL_VALUES and high - low > 2 * (tail - low) > 0
    high = tail if has_tail else high
    margin = (high - low) * 0.02 or max(abs(high) * 0.05, 0.5)
    low, high = (0.0 if 0 <= low < margin * 5 else low - margin), high + margin
    stacks = [np.histogram(np.minimum(group, high), bins, (low, high))[0].tolist() for group in (kept, rejected)]
    counts = list(zip(*stacks, strict=True))
    top = max(sum(pair) for pair in counts)
    frame = _Frame(low, high, 0, top * 1.08)
    parts = [frame.axes(f"{unit}; the last bar is of all above" if has_tail else unit, "clips")]
    for index, (in_, out) in enumerate(counts):
        start, end = low + (high - low) * index / bins, low + (high - low) * (index + 1) / bins
        upto = "and above" if has_tail and index == bins - 1 else f"to {end:.3g}"
        said = f"{start:.3g} {upto}: {in_} kept, {out} rejected"
        parts += frame.bar(start, end, 0, in_, "kept", said) + frame.bar(start, end, in_, in_ + out, "rejected", said)
    for limit in limits:
        x = frame.x(limit.value)
        anchor, dx = ("end", -4) if x > WIDTH * 0.7 else ("start", 4)
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="limit" x="{x + dx:.1f}" y="{TOP - 8}" text-anchor="{anchor}">{escape(limit.label)}</text>')
    return _svg(WIDTH, parts)


def curves(lines: Sequence[Curve], bands: Sequence[Band], x_label: str, y_label: str, width: int = 1124) -> str:
    """Lines over a shared x axis, each with its trend (running mean over a twentieth of its points). y starts at 0.

    Raises ValueError without points.
    """
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if not points:
        raise ValueError("a chart of curves needs at least one finite point")
    ends = [band.start for band in bands] + [band.end for band in bands] + [x for x, _ in points]
    frame = _Frame(min(ends), max(ends) if max(ends) > min(ends) else min(ends) + 1, 0, max(y for _, y in points) * 1.08 or 1, width)
    parts = [frame.band(band, index) for index, band in enumerate(bands)]
    parts.append(frame.axes(x_label, y_label))
    labels = list(dict.fromkeys(line.label for line in lines))
    for line in lines:
        colour = f"line{labels.index(line.label) % 4}"
        parts.append(frame.path(line.x, line.y, f"{colour} raw"))
        parts.append(frame.path(line.x, _running_mean(line.y, max(1, len(line.y) // 20)), f"{colour} trend"))
    if len(labels) > 1:
        parts += _legend(labels)
    return _svg(width, parts)


def marked(lines: Sequence[Curve], x_label: str, y_label: str, levels: Sequence[Limit] = (), width: int = WIDTH) -> str:
    """Few points, each with a mark, joined as they are; y spans the values. `levels`: horizontal lines, e.g. truth's value.

    Raises ValueError without points.
    """
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if not points:
        raise ValueError("a chart of marked points needs at least one finite point")
    xs = [x for x, _ in points]
    ys = [y for _, y in points] + [level.value for level in levels]
    margin_x = (max(xs) - min(xs)) * 0.03 or 0.5
    margin_y = (max(ys) - min(ys)) * 0.08 or max(abs(max(ys)) * 0.05, 0.01)
    frame = _Frame(min(xs) - margin_x, max(xs) + margin_x, min(ys) - margin_y, max(ys) + margin_y, width)
    parts = [frame.axes(x_label, y_label)]
    for level in levels:
        y = frame.y(level.value)
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="limit" x="{width - RIGHT}" y="{y - 4:.1f}" text-anchor="end">{escape(level.label)}</text>')
    for index, line in enumerate(lines):
        colour = f"line{index % 4}"
        parts.append(frame.path(line.x, line.y, f"{colour} trend"))
        for x, y in zip(line.x, line.y, strict=True):
            if math.isfinite(y):
                said = escape(f"{line.label}, {x_label} {x:g}: {y:.4g}")
                parts.append(f'<circle class="{colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"><title>{said}</title></circle>')
    return _svg(width, parts + (_legend([line.label for line in lines]) if len(lines) > 1 else []))


@dataclass(frozen=True)
class _Frame:
    """Maps values to the drawing."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float
    width: int = WIDTH

    def x(self, value: float) -> float:
        return LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        parts = []
        for value in ticks(self.low_y, self.high_y, 4):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{value:.3g}</text>')
        base = HEIGHT - BOTTOM
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{base}" y2="{base}"/>')
        for value in ticks(self.low_x, self.high_x, 6):
            parts.append(f'<text x="{self.x(value):.1f}" y="{base + 14}" text-anchor="middle">{value:.4g}</text>')
        parts.append(f'<text class="label" x="{self.width - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>')
        parts.append(f'<text class="label" x="4" y="{TOP - 8}">{escape(y_label)}</text>')
        return "".join(parts)

    def band(self, band: Band, index: int) -> str:
        """A shaded stretch; its label stands above, or inside at its right end where it is wider than the stretch."""
        left, right = self.x(band.start), self.x(band.end)
        shade = "band even" if index % 2 == 0 else "band odd"
        size = f'x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
        fits = right - left > 5.5 * len(band.label)
        place = (
            f'x="{(left + right) / 2:.1f}" y="{TOP - 6}" text-anchor="middle"'
            if fits
            else f'x="{right:.1f}" y="{TOP + 12}" text-anchor="end"'
        )
        label = escape(band.label)
        return f'<rect class="{shade}" {size}><title>{label}</title></rect><text class="band" {place}>{label}</text>'

    def bar(self, start: float, end: float, low: float, high: float, kind: str, said: str) -> list[str]:
        if high <= low:
            return []
        x, top = self.x(start) + 0.5, self.y(high)
        size = f'x="{x:.1f}" y="{top:.1f}" width="{max(1.0, self.x(end) - x - 0.5):.1f}" height="{self.y(low) - top:.1f}"'
        return [f'<rect class="{kind}" {size}><title>{escape(said)}</title></rect>']

    def path(self, xs: Sequence[float], ys: Sequence[float], kind: str) -> str:
        points = [f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        if len(points) == 1:
            x, y = points[0].split(",")
            return f'<circle class="{kind}" cx="{x}" cy="{y}" r="2.5"/>'
        return f'<polyline class="{kind}" points="{" ".join(points)}"/>'


def _running_mean(values: Sequence[float], half: int) -> list[float]:
    """Mean over `half` points to each side, fewer at the ends; not finite values are left out."""
    means = []
    for index in range(len(values)):
        near = [value for value in values[max(0, index - half) : index + half + 1] if math.isfinite(value)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def _legend(labels: Sequence[str]) -> list[str]:
    """Below the axis, from the left."""
    parts, x = [], float(LEFT)
    for index, label in enumerate(labels):
        parts.append(f'<line class="line{index % 4} trend" x1="{x:.0f}" x2="{x + 15:.0f}" y1="{HEIGHT - 8}" y2="{HEIGHT - 8}"/>')
        parts.append(f'<text x="{x + 20:.0f}" y="{HEIGHT - 4}">{escape(label)}</text>')
        x += 40 + 6.2 * len(label)
    return parts


def _svg(width: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" role="img">{"".join(parts)}</svg>'
