"""Makes glyphs.png and glyphs.json: a signed-distance atlas of the printable ASCII characters.

Usage: python make.py DejaVuSans-Bold.ttf   (needs Pillow, NumPy, SciPy)

Every cell is CELL pixels; a glyph sits at (PAD, baseline) for an em of EM pixels. A pixel holds
128 + 127 * distance / SPREAD, the distance to the outline in pixels, positive inside.
"""
import sys
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt as edt

EM, PAD, SPREAD, OVER = 32, 4, 4.0, 8
CELL = (42, 42)  # width, height
ASCENT = 31  # baseline, pixels from the top of the cell
font = ImageFont.truetype(sys.argv[1], EM * OVER)
advances, cells = [], []
for code in range(32, 127):
    big = Image.new("L", (CELL[0] * OVER, CELL[1] * OVER))
    ImageDraw.Draw(big).text((PAD * OVER, ASCENT * OVER), chr(code), 255, font=font, anchor="ls")
    inside = np.asarray(big) > 127
    distance = edt(inside) - edt(~inside) if inside.any() else np.full(inside.shape, -1e3)
    small = distance.reshape(CELL[1], OVER, CELL[0], OVER).mean((1, 3)) / OVER
    cells.append(np.clip(np.round(128 + 127 * small / SPREAD), 0, 255).astype(np.uint8))
    advances.append(round(font.getlength(chr(code)) / OVER, 2))
columns = 16
cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
rows = [np.hstack(cells[i:i + columns]) for i in range(0, len(cells), columns)]
Image.fromarray(np.vstack(rows)).save("glyphs.png", optimize=True)
print(advances)
