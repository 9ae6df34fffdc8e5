"""Save figures as PNG and SVG without a display, with fonts for their labels, and choose colours and marks."""

import functools
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from warnings import catch_warnings, filterwarnings, warn

from mop_t5.files import StrPath, write_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# font families with Chinese characters, by their names on Linux, Windows and macOS
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
# colours of Okabe and Ito, which the colour-blind can tell apart, without yellow, which is hard to see on white
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "os^DvPX*"


class Look(TypedDict):
    """Colour and mark of a series."""

    color: str
    marker: str


def look(number: int) -> Look:
    """Return colour and mark of a series by its number. The first 56 series look different."""
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKS[number % len(_MARKS)]}


def save_figure(figure: "Figure", path: StrPath, labels: Iterable[str]) -> list[Path]:
    """Write a figure as PNG and SVG.

    Earlier files of the same names are kept under other names (see `write_beside`). Text of the SVG stays text, so the
    reader's fonts show it. Warn if the PNG lacks a character, because no font on this machine has it.

    Args:
        figure: The figure.
        path: Path of the files without a suffix.
        labels: Texts of the figure that come from data.

    Returns:
        The paths of the PNG and of the SVG.
    """
    import matplotlib
    from matplotlib.text import Text

    needed = {character for label in labels for character in label if not character.isspace()}
    families, missing = _families(needed)
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
    if missing:
        warn(
            f"no font here has {''.join(sorted(missing))}: the PNG shows boxes instead. Install a font, such as the "
            "package fonts-noto-cjk. The SVG shows the characters on every machine with such a font.",
            stacklevel=2,
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, dict[str, Any]] = {"png": {"dpi": 120}, "svg": {"metadata": {"Date": None}}}
    written = [path.with_name(f"{path.name}.{suffix}") for suffix in options]
    # no date and fixed ids, so that the same plot is the same file
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing from font")  # the warning above names all of them
        for place, (suffix, more) in zip(written, options.items()):
            content = io.BytesIO()
            figure.savefig(content, format=suffix, **more)
            write_beside(place, content.getvalue())
    return written


def say_written(paths: Sequence[Path]) -> None:
    """Print the folder and the names of the files of a figure."""
    print(f"Written to {paths[0].parent}: {', '.join(path.name for path in paths)}.")


def _families(needed: set[str]) -> tuple[list[str], set[str]]:
    """Return the fonts to draw with, and the characters that none of them has."""
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
    """Add fonts that were installed after matplotlib made its permanent list of fonts."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {font.fname for font in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - known):
        with suppress(OSError, RuntimeError):  # FreeType cannot read the file, so it is no font
            fontManager.addfont(path)
