#!/usr/bin/env python3
"""What the cores give at best in f32, bf16 and int8: products in registers, those of libraries, and a large copy.

  ceilings_cpu.py [--threads N] [--products SIDE]

Prints one JSON object; rates are billions of operations a second, two a multiply-add: `gflop_s` by the clock, of all
threads, and `of_a_core` by the processor's time. The best of several runs is taken, since others may have the cores in
some. `registers` are the loops of ceilings_cpu.c (a C compiler that knows AMX, and a CPU that has it, else they are
left out). f32 and bf16 products of matrices are PyTorch's (MKL or oneDNN), int8 ones torch._int_mm's (oneDNN: s8 by s8
to s32) and, of a graph whose sides are quantized, OpenVINO's (oneDNN, from and to f32, so a little of its time is
quantizing). Matrices are in plain layout and random: that a library packs them is in its time.
"""
import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

RUNS = 10
#: How often the loops in registers are run.
REPEATS = 5


def registers(threads):
    """{loop: its rates} of ceilings_cpu.c; nothing where it cannot be built or run."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "ceilings"
        source = Path(__file__).with_suffix(".c")
        build = [os.environ.get("CC", "gcc"), "-O2", "-march=sapphirerapids", str(source), "-o", str(program), "-lpthread"]
        try:
            subprocess.run(build, check=True, capture_output=True)
            for _ in range(REPEATS):
                for line in subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout.splitlines():
                    name, _, wall, busy = line.split()
                    best = found.setdefault(name, {"gflop_s": 0, "of_a_core": 0})
                    best["gflop_s"], best["of_a_core"] = max(best["gflop_s"], round(float(wall) / 1e9)), max(best["of_a_core"], round(float(busy) / 1e9))
        except (OSError, subprocess.CalledProcessError):
            return {}
    return found


def seconds(work, runs=RUNS):
    """(best time, least CPU seconds of all threads) of `work`, after one run that is not counted."""
    work()
    times = []
    for _ in range(runs):
        cpu, begin = time.process_time(), time.perf_counter()
        work()
        times.append((time.perf_counter() - begin, time.process_time() - cpu))
    return min(wall for wall, _ in times), min(cpu for _, cpu in times)


def openvino_int8(n, threads):
    """A function that multiplies two n x n matrices in int8, and the kernel that does it."""
    import openvino as ov
    from openvino import opset13 as ops

    def quantized(node, lowest, highest, levels):
        low, high = (ops.constant(np.full((1, 1), value, np.float32)) for value in (lowest, highest))
        return ops.fake_quantize(node, low, high, low, high, levels)

    a = ops.parameter([n, n], np.float32, name="a")
    weights = ops.constant(np.random.default_rng(0).uniform(-1, 1, (n, n)).astype(np.float32))
    product = ops.matmul(quantized(a, -1, 127 / 128, 256), quantized(weights, -127 / 128, 127 / 128, 255), False, True)
    options = {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(ov.Model([product], [a], "product"), "CPU", options)
    infos = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    kernel = next(str(info["primitiveType"].value) for info in infos if str(info["layerType"].value) in ("FullyConnected", "MatMul"))
    request = compiled.create_infer_request()
    x = np.random.default_rng(1).uniform(-1, 1, (n, n)).astype(np.float32)
    return lambda: request.infer([x], share_inputs=True, share_outputs=True), kernel


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--products", type=int, default=2048, metavar="SIDE", help="side of the matrices (default 2048)")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    n = args.products
    report = {"threads": args.threads, "side": n, "torch": torch.__version__, "load": os.getloadavg()[0]}
    report["registers"] = registers(args.threads)

    def product(key, work):
        wall, cpu = seconds(work)
        report[key] = {"gflop_s": round(2e-9 * n**3 / wall), "of_a_core": round(2e-9 * n**3 / cpu)}

    a, b = torch.randn(n, n), torch.randn(n, n)
    with torch.inference_mode():
        product("f32", lambda: a @ b)
        short = a.bfloat16(), b.bfloat16()
        product("bf16", lambda: short[0] @ short[1])
        bytes_ = [torch.randint(-127, 128, (n, n), dtype=torch.int8) for _ in range(2)]
        product("int8_torch", lambda: torch._int_mm(*bytes_))
    work, report["int8_openvino_kernel"] = openvino_int8(n, args.threads)
    product("int8_openvino", work)
    source = torch.randn(1 << 26)
    target = torch.empty_like(source)
    wall, _ = seconds(lambda: target.copy_(source))
    report["copy_gb_s"] = round(2e-9 * source.numel() * source.element_size() / wall, 1)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
