"""Many images in one picture, with words: a grid with a caption, or methods row by row.

Small images are enlarged by repeating pixels, so that 32 px can be judged by eye and stay what they are; large ones are
reduced until the picture fits a screen.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from reports.images import ByteImage, ByteImages

_CELL = 96  # pixels: images smaller than this are enlarged towards it
_LARGEST = 4096  # pixels a side of the whole picture
_GAP = 4
_MARGIN = 12
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (90, 90, 90)


def image_grid(images: ByteImages, columns: int | None = None, caption: str = "") -> ByteImage:
    """Images [n, h, w, c] row by row in a near-square grid, above a caption if there is one. uint8 [H, W, 3].

    Raises ValueError when there is no image.
    """
    if not len(images):
        raise ValueError("A grid needs at least one image; none were passed.")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    return _draw([("", row) for row in rows], [], caption)


def comparison_grid(
    rows: Mapping[str, ByteImages], columns: Sequence[str] = (), caption: str = "", label_width: int = 0
) -> ByteImage:
    """One labelled row of images [n, h, w, c] an entry of `rows`, labelled columns, a caption. uint8 [H, W, 3].

    For images from equal noise by several methods, so that one looks down a column to compare. An empty row label takes
    no room; others take `label_width` pixels at least, so that pictures below one another have their columns in line.

    Raises ValueError when the rows differ in number or size of images, or the labels in number from the columns.
    """
    shapes = {label: np.shape(images) for label, images in rows.items()}
    if len(set(shapes.values())) != 1 or columns and len(columns) != next(iter(shapes.values()))[0]:
        raise ValueError(
            f"A comparison needs rows of equally many images of one size, and as many column labels: got {shapes} and "
            f"{len(columns)} labels. Draw the same --seeds with every method."
        )
    return _draw(list(rows.items()), columns, caption, label_width)


def _draw(
    rows: list[tuple[str, ByteImages]], column_labels: Sequence[str], caption: str, label_width: int = 0
) -> ByteImage:
    across, down = max(len(images) for _, images in rows), len(rows)
    height, width = rows[0][1].shape[1:3]
    enlarge = max(1, round(_CELL / max(height, width)))
    reduce = max(1, math.ceil(max(width * across, height * down) / _LARGEST)) if enlarge == 1 else 1
    cell_h, cell_w = math.ceil(height * enlarge / reduce), math.ceil(width * enlarge / reduce)
    font = ImageFont.load_default(max(13, min(cell_h, cell_w) // 7))

    labels = [label for label, _ in rows]
    widest = max(label_width, *(_text_width(label, font) for label in labels))
    left = _MARGIN + (widest + _MARGIN if any(labels) else 0)
    grid_width = across * (cell_w + _GAP) - _GAP
    total_width = left + grid_width + _MARGIN
    line = _line_height(font)
    headings = [_wrap(label, font, cell_w) for label in column_labels]
    top = _MARGIN + (max(map(len, headings)) * line + _GAP if headings else 0)
    caption_lines = _wrap(caption, font, total_width - 2 * _MARGIN)
    grid_height = down * (cell_h + _GAP) - _GAP
    total_height = top + grid_height + _MARGIN + (len(caption_lines) * line + _GAP if caption_lines else 0)

    page = Pillow.new("RGB", (total_width, total_height), _PAPER)
    pen = ImageDraw.Draw(page)
    for column, heading in enumerate(headings):
        middle = left + column * (cell_w + _GAP) + cell_w // 2
        for number, text in enumerate(heading):
            pen.text((middle, top - _GAP - (len(heading) - number) * line), text, _INK, font, anchor="ma")
    for row, (label, images) in enumerate(rows):
        y = top + row * (cell_h + _GAP)
        if label:
            pen.text((left - _MARGIN, y + cell_h // 2), label, _INK, font, anchor="rm")
        for column, image in enumerate(images):
            page.paste(_resize(image, enlarge, reduce), (left + column * (cell_w + _GAP), y))
    for number, text in enumerate(caption_lines):
        pen.text((_MARGIN, top + grid_height + _MARGIN // 2 + _GAP + number * line), text, _FAINT, font)
    return np.asarray(page)


def _resize(image, enlarge, reduce):
    rgb = np.broadcast_to(image, (*image.shape[:2], 3))
    picture = Pillow.fromarray(rgb.repeat(enlarge, axis=0).repeat(enlarge, axis=1))
    return picture.reduce(reduce) if reduce > 1 else picture


def _text_width(text, font):
    return math.ceil(font.getlength(text))


def _line_height(font):
    _, top, _, bottom = font.getbbox("Ag")
    return math.ceil(1.25 * bottom - 0.25 * top)


def _wrap(text, font, width):
    """Lines of `text` no wider than `width`; a single word may be wider."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and _text_width(longer, font) > width:
                lines.append(word)
            else:
                lines[-1] = longer
    return lines
