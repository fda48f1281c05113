"""Contact sheets: clips as a grid of thumbnails with what was measured under each, one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

TILE_PX = (240, 135)
"""Width and height of a thumbnail's box; pictures keep their shape inside."""
LINE_PX = 14
LINES = 4
GAP_PX = 8
BACKGROUND, BOX, INK, PALE = (250, 250, 248), (225, 225, 222), (25, 25, 25), (110, 110, 110)


def contact_sheet(rows: Sequence[Mapping[str, Any]], thumbs_folder: Path, path: Path, columns: int = 5) -> int:
    """Writes the sheet as PNG, in a folder that is there; returns the number of thumbnails found."""
    sheet, found = draw_sheet(rows, thumbs_folder, columns)
    sheet.save(path, format="PNG")
    return found


def draw_sheet(rows: Sequence[Mapping[str, Any]], thumbs_folder: Path, columns: int = 5) -> tuple[Image, int]:
    """The sheet, and the number of thumbnails found. A clip without one gets an empty box that says so.

    Rows hold clip_id, and of uri, start_us, end_us, scores, state, reject_reason, caption what is to be shown.
    """
    from PIL import Image, ImageDraw, ImageFont

    across = max(1, min(columns, len(rows)))
    down = max(1, -(-len(rows) // across))
    cell = (TILE_PX[0] + GAP_PX, TILE_PX[1] + LINES * LINE_PX + GAP_PX)
    sheet = Image.new("RGB", (across * cell[0] + GAP_PX, down * cell[1] + GAP_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    found = 0
    for index, row in enumerate(rows):
        left, top = GAP_PX + index % across * cell[0], GAP_PX + index // across * cell[1]
        draw.rectangle([left, top, left + TILE_PX[0] - 1, top + TILE_PX[1] - 1], fill=BOX)
        thumb = thumbs_folder / f"{row['clip_id']}.jpg"
        if thumb.is_file():
            _paste(sheet, thumb, left, top)
            found += 1
        else:
            draw.text((left + 6, top + 6), "no thumbnail", fill=PALE, font=font)
        for line, text in enumerate(caption_lines(row)):
            place = (left, top + TILE_PX[1] + 2 + line * LINE_PX)
            draw.text(place, _fit(draw, text, font, TILE_PX[0]), fill=PALE if line else INK, font=font)
    return sheet, found


def caption_lines(row: Mapping[str, Any]) -> list[str]:
    """The lines under a thumbnail: file and span; scores; state and reasons; caption."""
    name = str(row.get("uri") or row["clip_id"]).rsplit("/", 1)[-1]
    start, end = row.get("start_us"), row.get("end_us")
    span = f"  {start / 1e6:.1f}-{end / 1e6:.1f} s" if start is not None and end is not None and end > start else ""
    scores = []
    for label, column in (
        ("motion", "motion_proxy"),
        ("raft", "motion_raft"),
        ("looks", "aesthetic_proxy"),
        ("aesthetic", "aesthetic"),
        ("piqe", "piqe"),
        ("text", "text_overlay"),
    ):
        if row.get(column) is not None:
            scores.append(f"{label} {row[column]:.2f}")
    state = " ".join(str(row[column]) for column in ("state", "split", "reject_reason") if row.get(column))
    return [name + span, "  ".join(scores), state, str(row.get("caption") or "")]


def _paste(sheet: Image, thumb: Path, left: int, top: int) -> None:
    from PIL import Image

    with Image.open(thumb) as picture:
        picture.thumbnail(TILE_PX)
        sheet.paste(picture.convert("RGB"), (left + (TILE_PX[0] - picture.width) // 2, top + (TILE_PX[1] - picture.height) // 2))


def _fit(draw: ImageDraw, text: str, font: FreeTypeFont | ImageFont, width_px: int) -> str:
    """The text, cut with an ellipsis to the width."""
    if draw.textlength(text, font=font) <= width_px:
        return text
    while text and draw.textlength(text + "…", font=font) > width_px:
        text = text[:-1]
    return text + "…"
