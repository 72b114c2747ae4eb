"""What a race says of precisions: which one a runtime computed in, which photos calibrate it, a table of ratios.

Needs Python alone.
"""
import statistics
from collections import Counter

#: Names that OpenVINO has for types.
WORDS = {"f32": "f32", "float32": "f32", "bf16": "bf16", "bfloat16": "bf16", "f16": "f16", "float16": "f16", "i8": "int8", "u8": "int8", "int8_t": "int8",
         "uint8_t": "int8", "undefined": "f32"}
#: Layers of OpenVINO's CPU plugin that multiply, by their `layerType`.
PRODUCTS = ("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention")
#: Precisions, the widest first.
ORDER = ("f32", "f16", "bf16", "int8")
#: Names of photos end so.
PHOTOS = (".jpg", ".jpeg", ".png")


def word(name):
    """Our word for a runtime's name of a precision."""
    return WORDS.get(name.lower(), name.lower())


def executed(layers):
    """(precision of most products, a sentence) of the (layer type, precision, kernel) of a compiled network."""
    products = [(word(precision), kernel) for kind, precision, kernel in layers if kind in PRODUCTS]
    if not products:
        return None, "no products"
    counts = Counter(precision for precision, _ in products)
    named = ", ".join(f"{n} in {precision}" for precision, n in counts.most_common())
    return counts.most_common(1)[0][0], f"{len(products)} products: {named}"


def kernels(layers):
    """{kernel: how many products it computes}, the commonest first."""
    return dict(Counter(kernel for kind, _, kernel in layers if kind in PRODUCTS).most_common())


def photos(folder, count):
    """(`count` photos of a folder spread evenly over their names, those between them)."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTOS)
    if len(found) < count:
        raise ValueError(f"{folder}: {len(found)} photos, {count} are wanted")
    taken = {i * len(found) // count for i in range(count)}
    return [found[i] for i in sorted(taken)], [path for i, path in enumerate(found) if i not in taken]


def set_of(folder):
    """The name of a set of photos: its folder's, or of the one above `images`."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "images" else folder.name


def ratios(race):
    """Lines of a table: every program's time over that of knet in each of its precisions, `*` where both have the same."""
    ours = sorted((entry for entry in race["entries"] if entry["program"] == "knet"), key=lambda entry: ORDER.index(entry["precision"]))
    lines = [f"{race['title']}: time, and over knet's in " + ", ".join(entry["precision"] for entry in ours)]
    for entry in race["entries"]:
        cells = (f"{entry['seconds'] / own['seconds']:8.2f}{'*' if entry['precision'] == own['precision'] else ' '}" for own in ours)
        lines.append(f"  {entry['label']:42} {entry['precision']:5} {1e3 * entry['seconds']:9.1f} ms" + "".join(cells))
    return lines


def spread(values):
    """Median and largest of some errors, in words."""
    return f"median {statistics.median(values):.1e}, at most {max(values):.1e}"
