"""What a race says of precisions, with nothing but Python."""

import sys
import tempfile
import unittest
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
sys.path.insert(0, HERE)
from precision import executed, kernels, photos, ratios, set_of, spread, word  # noqa: E402
from said import command  # noqa: E402

sys.path.remove(HERE)

LAYERS = [
    ("Convolution", "u8", "brgconv_avx512_amx_I8"),
    ("Convolution", "i8", "brgconv_avx512_amx_I8"),
    ("GroupConvolution", "bf16", "brgconv_avx512_dw_bf16"),
    ("FullyConnected", "u8", "brgemm_avx512_amx_I8"),
    ("Reorder", "f32", "jit_uni_f32"),
]


def entry(program: str, precision: str, seconds: float) -> dict:
    return {"program": program, "label": f"{program}, {precision}", "precision": precision, "seconds": seconds}


class Precisions(unittest.TestCase):
    def test_the_precision_is_that_of_most_products_whatever_lies_between_them(self):
        chosen, words = executed(LAYERS)
        self.assertEqual((chosen, words), ("int8", "4 products: 3 in int8, 1 in bf16"))
        self.assertEqual(executed([("Convolution", "bf16", "a"), *LAYERS[2:3]])[0], "bf16")
        self.assertEqual(executed(LAYERS[4:]), (None, "no products"))

    def test_kernels_are_counted_the_commonest_first(self):
        counted = {"brgconv_avx512_amx_I8": 2, "brgconv_avx512_dw_bf16": 1, "brgemm_avx512_amx_I8": 1}
        self.assertEqual(kernels(LAYERS), counted)
        self.assertEqual(next(iter(kernels(LAYERS))), "brgconv_avx512_amx_I8")

    def test_runtimes_names_of_types_are_ours(self):
        self.assertEqual([word(name) for name in ("BF16", "float32", "u8", "int8_t")], ["bf16", "f32", "int8", "int8"])

    def test_photos_that_calibrate_are_spread_and_the_others_are_left(self):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "some-set" / "images"
            folder.mkdir(parents=True)
            for i in range(10):
                (folder / f"{i}.jpg").touch()
            (folder / "credits.json").touch()
            taken, left = photos(folder, 4)
            self.assertEqual([path.name for path in taken], ["0.jpg", "2.jpg", "5.jpg", "7.jpg"])
            self.assertEqual([path.name for path in left], ["1.jpg", "3.jpg", "4.jpg", "6.jpg", "8.jpg", "9.jpg"])
            with self.assertRaisesRegex(ValueError, "10 photos, 11 are wanted"):
                photos(folder, 11)
            self.assertEqual((set_of(folder), set_of(folder.parent)), ("some-set", "some-set"))

    def test_ratios_are_theirs_over_knets_in_each_precision_and_equals_are_marked(self):
        entries = [entry("knet", "int8", 0.1), entry("knet", "f32", 0.4), entry("OpenVINO", "f32", 0.6), entry("OpenVINO", "int8", 0.16)]
        title, *rows = ratios({"title": "A model, network", "entries": entries})
        self.assertEqual(title, "A model, network: time, and over knet's in f32, int8")
        self.assertEqual([row.split()[-2:] for row in rows], [["0.25", "1.00*"], ["1.00*", "4.00"], ["1.50*", "6.00"], ["0.40", "1.60*"]])

    def test_errors_are_said_by_their_middle_and_end(self):
        self.assertEqual(spread([0.3, 0.01, 0.02]), "median 2.0e-02, at most 3.0e-01")

    def test_the_command_does_not_say_where_photos_and_models_lie(self):
        words = ["--int8", "/tmp/a", "--photos", "/tmp/b", "--keep", "/tmp/c", "--calibration", "16"]
        self.assertRegex(command(words), r"^tools/peer/.* --calibration 16$")


if __name__ == "__main__":
    unittest.main()
