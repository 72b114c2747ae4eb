"""What needs nothing but Python: the command of a result, and a model with other kernels."""

import json
import struct
import sys
import tempfile
import unittest
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
sys.path.insert(0, HERE)
from curves import PERSON, with_kernels  # noqa: E402
from said import command, said  # noqa: E402

sys.path.remove(HERE)


def read(path: Path) -> tuple[dict, dict[str, tuple[dict, bytes]], int]:
    """(metadata, {tensor: (entry, bytes)}, bytes of all) of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.pop("__metadata__")
    return metadata, {name: (entry, body[slice(*entry["data_offsets"])]) for name, entry in header.items()}, len(body)


class Curves(unittest.TestCase):
    def test_a_model_has_as_many_kernels_as_asked_for_and_nothing_else_changes(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "25.safetensors"
            with_kernels(path, 25)
            metadata, tensors, size = read(path)
        _, wanted, _ = read(PERSON)
        self.assertEqual(json.loads(metadata["knet.config"])["proposals"], 25)
        entry, kernels = tensors.pop("rpn_head.init_kernels.weight")
        own = wanted.pop("rpn_head.init_kernels.weight")[1]
        self.assertEqual(entry["shape"][0], 25)
        self.assertEqual(kernels, (own * 3)[: len(own) // 12 * 25])
        self.assertEqual({name: data for name, (_, data) in tensors.items()}, {name: data for name, (_, data) in wanted.items()})
        self.assertEqual(size, len(kernels) + sum(len(data) for _, data in tensors.values()))

    def test_the_command_leaves_out_where_things_lie(self):
        words = ["sizes", "--knet", "/tmp/knet", "--sizes", "320x320", "--peers", "a", "b", "--rounds", "3", "--json=x"]
        self.assertRegex(command(words), r"^tools/peer/.* sizes --sizes 320x320 --rounds 3$")

    def test_a_result_says_the_range_of_its_loads(self):
        about = said(2, [0.31, 0.12, 0.5], {"torch": "2.15.0"}, "abcdef0")
        self.assertEqual((about["machine"]["load"], about["machine"]["torch"], about["commit"]), ("0.1 to 0.5", "2.15.0", "abcdef0"))


if __name__ == "__main__":
    unittest.main()
