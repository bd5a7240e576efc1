"""The figure of the quickstart: recordings and answers as waveform, spectrogram and codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

INK, FAINT, GIVEN, ANSWERED = "#22223b", "#77778c", "#2f6690", "#bc4749"
# Heights of a panel in inches: heading, waveform, spectrogram, codes, axis of time.
HEADING, WAVE, SPECTRUM, CODES, AXIS = 0.72, 0.55, 1.35, 0.2, 0.42
WIDTH, LEFT, GAP, TOP = 4.3, 0.62, 0.3, 0.3
MAX_HZ, RANGE_DB = 8000, 70


@dataclass
class Panel:
    """
    Args:
        title: what it is.
        caption: what is said.
        audio: samples `[S]` at `rate` Hz; `None` where nothing was said.
        codes: `[T]`, `code_rate` of them in a second.
        is_input: in the colour of what was given, else in that of an answer.
    """

    title: str
    caption: str
    audio: np.ndarray | None
    rate: int | None
    codes: np.ndarray | None
    code_rate: float
    is_input: bool = False


def draw(columns: Mapping[str, Sequence[Panel]], path: str | Path) -> None:
    """
    Write a picture of columns of panels, each with a heading, all on one scale of time.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    panels = [panel for column in columns.values() for panel in column if panel.audio is not None]
    seconds = max([1.0, *(len(panel.audio) / panel.rate for panel in panels)])
    rows = max(len(column) for column in columns.values())
    height = TOP + rows * (HEADING + WAVE + SPECTRUM + CODES + AXIS)
    width = LEFT + len(columns) * (WIDTH + GAP)
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")

    def axes(left: float, top: float, size: float):
        """A part of a panel, placed in inches from the upper left corner."""
        return figure.add_axes((left / width, 1 - (top + size) / height, WIDTH / width, size / height))

    for j, (heading, column) in enumerate(columns.items()):
        left = LEFT + j * (WIDTH + GAP)
        figure.text(left / width, 1 - 0.3 / height, heading, size=14, weight="bold", color=INK)
        for i, panel in enumerate(column):
            top = TOP + i * (HEADING + WAVE + SPECTRUM + CODES + AXIS)
            colour = GIVEN if panel.is_input else ANSWERED
            figure.text(left / width, 1 - (top + 0.34) / height, panel.title, size=11, color=colour, weight="bold")
            figure.text(left / width, 1 - (top + 0.57) / height, _short(panel.caption), size=10, color=INK)
            top += HEADING
            parts = [axes(left, top, WAVE), axes(left, top + WAVE, SPECTRUM), axes(left, top + WAVE + SPECTRUM, CODES)]
            for part in parts:
                part.set_xlim(0, seconds)
                part.tick_params(colors=FAINT, labelsize=9, length=2.5)
                part.spines[:].set_visible(False)
                part.set(yticks=[], xticks=[])
            if panel.audio is None:
                parts[1].text(0.5 * seconds, 0.5, "no speech", ha="center", color=FAINT)
                continue
            _waveform(parts[0], panel, colour)
            _spectrogram(parts[1], panel)
            _codes(parts[2], panel)
            parts[2].set_xticks(np.arange(0, seconds + 0.01, 0.5))
            label = f"seconds ({panel.code_rate:g} codes in each)"
            parts[2].set_xlabel(label, size=9, color=FAINT, labelpad=1, loc="left")
            if j == 0:
                parts[1].set_yticks([0, 4000, 8000], ["0", "4", "8 kHz"])
                parts[2].set_yticks([0.5], ["codes"])
    figure.savefig(path)


def _short(text: str, length: int = 57) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _waveform(axis, panel: Panel, colour: str) -> None:
    # The lowest and highest sample of each piece: there are more samples than pixels.
    starts = np.arange(0, len(panel.audio), max(1, len(panel.audio) // 600))
    low, high = np.minimum.reduceat(panel.audio, starts), np.maximum.reduceat(panel.audio, starts)
    axis.fill_between(starts / panel.rate, low, high, color=colour, linewidth=0.4)
    top = 1.1 * max(1e-4, float(np.abs(panel.audio).max()))
    axis.set_ylim(-top, top)


def _spectrogram(axis, panel: Panel) -> None:
    window, hop = panel.rate // 40, panel.rate // 320  # 25 ms and 3 ms
    pieces = np.lib.stride_tricks.sliding_window_view(np.pad(panel.audio, window // 2), window)[::hop]
    power = np.abs(np.fft.rfft(pieces * np.hanning(window), n=1024)) ** 2
    levels = 10 * np.log10(np.maximum(power, 1e-10)).T
    extent = (0, len(panel.audio) / panel.rate, 0, panel.rate / 2)
    limits = {"vmin": levels.max() - RANGE_DB, "vmax": levels.max()}
    axis.imshow(levels, origin="lower", aspect="auto", extent=extent, cmap="magma", interpolation="bilinear", **limits)
    axis.set_ylim(0, MAX_HZ)


def _codes(axis, panel: Panel) -> None:
    edges = np.arange(len(panel.codes) + 1) / panel.code_rate
    # Neighbours of the codebook are not alike, so neither are their colours.
    colours = (np.asarray(panel.codes) * 7) % 20
    axis.pcolormesh(edges, [0, 1], colours[None], cmap="tab20", vmin=0, vmax=19, edgecolors="white", linewidth=0.3)


__all__ = ["Panel", "draw"]
