"""What plots have in common: a figure without a display, fonts for the labels, PNG and SVG of one name."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from warnings import catch_warnings, filterwarnings, warn

from mop_t5.files import write_beside

# families with Chinese characters, as they are called on Linux, Windows and macOS
_CHINESE = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Heiti SC",
    "Arial Unicode MS",
)
_LATIN = "DejaVu Sans"  # comes with matplotlib
# Okabe and Ito's, which the colour-blind tell apart, without the yellow, which is hard to see on white
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "os^DvPX*"


def look(number: int) -> dict[str, str]:
    """Colour and mark of a series by its number: 56 that differ."""
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKS[number % len(_MARKS)]}


def save_figure(figure, path: str | Path, labels: Iterable[str]) -> list[Path]:
    """Write `path` with the suffixes .png and .svg, and return both. labels: the texts that come from the data.

    What was there is kept, under another name (see write_beside). Text of the SVG stays text, for the fonts of whoever
    looks at it. Warns where the PNG lacks a character, because no font here has it.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    needed = {character for label in labels for character in label if not character.isspace()}
    families, missing = _families(needed)
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
    FigureCanvasAgg(figure)
    if missing:
        warn(
            f"no font here has {''.join(sorted(missing))}: boxes stand for them in the PNG. Install one, such as the "
            "package fonts-noto-cjk; the SVG shows them wherever it is opened with one.",
            stacklevel=2,
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg")]
    # without a date and with ids that do not change, so that the same plot is the same file
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing from font")  # said above, once for all of them
        for place, how in zip(written, ({"format": "png", "dpi": 120}, {"format": "svg", "metadata": {"Date": None}})):
            content = io.BytesIO()
            figure.savefig(content, **how)
            write_beside(place, content.getvalue())
    return written


def say_written(paths: Sequence[Path]) -> None:
    """Print where the files of a figure are."""
    print(f"Written to {paths[0].parent}: {', '.join(path.name for path in paths)}.")


def _families(needed: set[str]) -> tuple[list[str], set[str]]:
    """The fonts to draw with, and which of the characters none of them has."""
    from matplotlib.font_manager import fontManager, get_font

    latin = next(font.fname for font in fontManager.ttflist if font.name == _LATIN)
    if any(ord(character) not in get_font(latin).get_charmap() for character in needed):
        _find_new_fonts()
    installed = {font.name: font.fname for font in fontManager.ttflist}
    chosen, missing = [], set(needed)
    for family in (_LATIN, *(family for family in _CHINESE if family in installed)):
        has = get_font(installed[family]).get_charmap()
        found = {character for character in missing if ord(character) in has}
        if found or family == _LATIN:
            chosen.append(family)
            missing -= found
    return chosen, missing


@functools.cache
def _find_new_fonts() -> None:
    """Tell matplotlib of fonts that were installed after it made its list of them, which it keeps for good."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {font.fname for font in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - known):
        with suppress(OSError, RuntimeError):  # a file that FreeType cannot read is no font
            fontManager.addfont(path)
