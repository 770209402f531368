"""Histograms of spike counts."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

from .style import NEGATIVE, NEUTRAL, POSITIVE, SHADE, plain, save_figure

# Signed counts up to this size have their own bar; the outermost bars hold all beyond.
_SHOWN = 16
BARS = tuple(range(-_SHOWN - 1, _SHOWN + 2))


def bars_of(histogram: Counter[int]) -> list[int]:
    """Return the number of channels for each of `BARS`.

    >>> bars = dict(zip(BARS, bars_of(Counter({0: 5, -3: 2, 16: 1, 400: 7}))))
    >>> bars[0], bars[-3], bars[16], bars[17], bars[-17]
    (5, 2, 1, 7, 0)
    """
    below, above = (sum(n for v, n in histogram.items() if sign * v > _SHOWN) for sign in (-1, 1))
    return [below, *(histogram[v] for v in BARS[1:-1]), above]


def plot_histogram(histogram: Counter[int], path: str | os.PathLike, title: str = "") -> None:
    """Draw the histogram of signed spike counts, and the share of channels that need more than a number of bits.

    Args:
        histogram: number of channels by signed count, e.g. from `merged_histogram`; at least one channel.
        path: *.png or *.svg to write.
        title: title of the left plot.
    """
    total = histogram.total()
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))

    shares = [number / total for number in bars_of(histogram)]
    colors = [NEGATIVE if v < 0 else POSITIVE if v > 0 else NEUTRAL for v in BARS]
    left.axvspan(-7.5, 7.5, color=SHADE, zorder=0)
    left.bar(BARS, [100 * s for s in shares], color=colors, width=0.82)
    ticks = (-12, -7, 0, 7, 12)
    labels = [f"<−{_SHOWN}", *(str(t).replace("-", "−") for t in ticks), f">{_SHOWN}"]
    left.set_xticks([-_SHOWN - 1, *ticks, _SHOWN + 1], labels)
    left.set_xlabel("signed spike count of a channel")
    left.set_ylabel("share of channels, %")
    inside = sum(n for v, n in histogram.items() if abs(v) <= 7) / total
    left.text(0.02, 0.97, f"silent: {histogram[0] / total:.1%}", transform=left.transAxes, va="top")
    left.text(0.02, 0.90, f"|count| ≤ 7 (shaded): {inside:.1%}", transform=left.transAxes, va="top")
    left.set_title(plain(title), loc="left", fontsize=10)

    largest = max(abs(v) for v in histogram)
    bits = list(range(max(largest.bit_length(), 1) + 1))
    beyond = [100 * sum(n for v, n in histogram.items() if abs(v) >= 2**b) / total for b in bits]
    # Every count fits the last number of bits; a share of 0 cannot be drawn on a logarithmic axis.
    right.plot(bits[:-1], beyond[:-1], "o-", color=POSITIVE, markersize=4)
    if largest:
        right.set_yscale("log")
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set_xticks(bits)
    right.set_xlabel("bits of |count| (timesteps of the bitwise code)")
    right.set_ylabel("channels that need more, %")
    right.set_title(f"largest |count|: {largest:,} ({bits[-1]} bits)", loc="left", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    right.grid(axis="y", color="#dddddd", linewidth=0.6)
    save_figure(figure, Path(path))
