"""Pictures of routing: the heatmap of load and histograms of router probabilities, from a row of split ``routing``."""

import io
import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.histogram_pb2 import HistogramProto
from tensorboard.compat.proto.summary_pb2 import Summary

WIDEST = 960  # pixels for the experts of a layer
CELL_WIDTH, CELL_HEIGHT, MARGIN, TEXT_SIZE = 40, 28, 8, 15  # TensorBoard shows pictures at a third of the page
OCTAVES = 3  # colors end at 1/8 and 8 times the uniform share
LOW, MIDDLE, HIGH = (33, 102, 172), (247, 247, 247), (178, 24, 43)  # blue: too little, red: too much
BLACK, WHITE, GRAY = (0, 0, 0), (255, 255, 255), (90, 90, 90)
Color = tuple[int, int, int]


def heatmap(tag: str, title: str, load: Mapping[str, Sequence[float]]) -> Summary.Value:
    """Return a picture of the load of experts, a line per sparse layer and a column per expert.

    A color is the load relative to the uniform share, on a logarithmic scale: white is uniform, blue is too little, red
    too much. Where there is room, the number is written in the cell.

    Args:
        tag: of the picture.
        title: first line.
        load: by layer, the share of each expert.
    """
    font = ImageFont.load_default(TEXT_SIZE)
    experts = max(len(shares) for shares in load.values())
    cell = max(4, min(CELL_WIDTH, WIDEST // experts))
    left = MARGIN * 2 + int(max(font.getlength(layer) for layer in load))
    top = MARGIN * 2 + 2 * TEXT_SIZE + 6
    bottom = top + CELL_HEIGHT * len(load)
    ticks = [2.0**octave for octave in range(-OCTAVES, OCTAVES + 1)]
    width = max(cell * experts, CELL_WIDTH * len(ticks), int(font.getlength(title)) - left + MARGIN)
    size = (left + width + MARGIN, bottom + 66)
    image = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), title, BLACK, font)
    every = max(1, math.ceil(30 / cell))
    for expert in range(0, experts, every):
        draw.text((left + (expert + 0.5) * cell, top - 3), str(expert), GRAY, font, anchor="mb")
    for row, (layer, shares) in enumerate(load.items()):
        y = top + row * CELL_HEIGHT
        draw.text((left - MARGIN, y + CELL_HEIGHT / 2), layer, BLACK, font, anchor="rm")
        for expert, share in enumerate(shares):
            relative = share * len(shares)
            text = f"{relative:.1f}" if cell >= 30 else ""
            _cell(draw, font, (left + expert * cell, y, cell, CELL_HEIGHT), relative, text)
    for number, tick in enumerate(ticks):
        text = f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}"
        _cell(draw, font, (left + number * CELL_WIDTH, bottom + 12, CELL_WIDTH, 22), tick, text)
    draw.text((left, bottom + 40), "times the uniform share", GRAY, font)
    png = io.BytesIO()
    image.save(png, format="PNG")
    picture = Summary.Image(height=size[1], width=size[0], colorspace=3, encoded_image_string=png.getvalue())
    return Summary.Value(tag=tag, image=picture)


def histogram(tag: str, counts: Sequence[float]) -> Summary.Value:
    """Return the histogram of numbers in 0..1 from the counts of equal bins.

    Sum and sum of squares, which TensorBoard does not draw, are those of the middles of the bins.
    """
    bins = len(counts)
    middles = [(number + 0.5) / bins for number in range(bins)]
    proto = HistogramProto(
        min=0.0,
        max=1.0,
        num=sum(counts),
        sum=sum(count * middle for count, middle in zip(counts, middles, strict=True)),
        sum_squares=sum(count * middle**2 for count, middle in zip(counts, middles, strict=True)),
        bucket_limit=[(number + 1) / bins for number in range(bins)],
        bucket=counts,
    )
    return Summary.Value(tag=tag, histo=proto)


def color(relative: float) -> Color:
    """Return the color of a load, relative to the uniform share."""
    if not math.isfinite(relative):
        return GRAY
    octaves = math.log2(max(relative, 2.0**-OCTAVES))
    strength, end = min(abs(octaves) / OCTAVES, 1.0), HIGH if octaves > 0 else LOW
    red, green, blue = (
        round(middle + strength * (extreme - middle)) for middle, extreme in zip(MIDDLE, end, strict=True)
    )
    return red, green, blue


def _cell(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    box: tuple[int, int, int, int],
    relative: float,
    text: str,
) -> None:
    x, y, width, height = box
    fill = color(relative)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill, outline=WHITE if width > 6 else None)
    ink = BLACK if sum(fill) > 380 else WHITE
    draw.text((x + width / 2, y + height / 2), text, ink, font, anchor="mm")
