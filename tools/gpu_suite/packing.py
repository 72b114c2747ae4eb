"""Builds and packs what the suite runs, for a machine without Rust, without network and without this repository."""
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKED = REPOSITORY / "out" / "gpu"
# It must travel beside whatever else a machine is given.
MAX_ARCHIVE = 40 << 20
SUITES = ("device", "model")
# What the suites read, from the repository.
FILES = ("tests/goldens/inputs", "tests/goldens/knet_s3_r50_fpn", "tests/goldens/knet_s3_r50_fpn_panoptic", "tests/goldens/seeds",
         "assets/photos", "weights")
# Goldens of training are not read on a GPU.
LEFT_OUT = ("train.json", "train.safetensors")
PEER = ("bench_gpu.py", "ceilings.py", "efficientnet_lite.py", "knet_torch.py", "weights.py")
# What the plans run, so that no kernel of theirs is compiled where time is short: (model, size of the network's input, precisions).
FILLED = (
    ("knet_s3_r50_fpn", "800x1344", ("f16", "bf16")),
    ("knet_s3_r50_fpn", "512x512", ("f16",)),
    ("knet_s3_r50_fpn_panoptic", "800x1344", ("f16",)),
    ("knet_s3_r50_fpn_panoptic", "128x192", ("f16",)),
    ("knet_s3_lite0_person", "800x1344", ("f16",)),
)


def build(profile: str):
    """Copies suites and the program to `PACKED`, stripped. Criterion's benches stay at home: `knet bench` and `knet tune` take the same
    times."""
    tests = [word for name in SUITES for word in ("--test", name)]
    command = ["cargo", "test", "--profile", profile, "--locked", "--no-run", "--message-format=json", *tests]
    messages = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout
    programs = []
    for line in messages.splitlines():
        message = json.loads(line)
        path, target = message.get("executable"), message.get("target", {})
        # Integration tests bring the programs along, as they are built for them; their own unit tests are not wanted.
        if not path or message["profile"]["test"] and target["kind"] == ["bin"] or target["name"] == "knet-train":
            continue
        programs.append(PACKED / "programs" / target["name"])
        shutil.copy(path, programs[-1])
    subprocess.run(["strip", *programs], check=True)


def fill_cache(gpu: str):
    """Compiles the kernels that the plans run into the archive's cache, by the oldest compiler of CUDA 13 unless another is named."""
    nvrtc = REPOSITORY / "target/cuda/nvrtc-13.0/nvidia/cu13/lib/libnvrtc.so.13"
    env = {"KNET_NVRTC": str(nvrtc), **os.environ, "KNET_CACHE": str(PACKED / "cache")}
    knet = PACKED / "programs" / "knet"
    for model, size, precisions in FILLED:
        weights = REPOSITORY / "weights" / f"{model}.safetensors"
        source = ["--weights", weights] if weights.exists() else ["--model", model]
        for precision in precisions:
            command = [knet, "cache", "fill", "--gpu", gpu, *source, "--size", size, "--precision", precision]
            subprocess.run(command, env=env, check=True)


def pack(profile: str, gpu: str) -> int:
    shutil.rmtree(PACKED, ignore_errors=True)
    for folder in ("programs", "peer", "root"):
        (PACKED / folder).mkdir(parents=True)
    build(profile)
    fill_cache(gpu)
    shutil.copy(REPOSITORY / "tools" / "gpu-suite", PACKED)
    shutil.copytree(REPOSITORY / "tools" / "gpu_suite", PACKED / "gpu_suite", ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    for name in PEER:
        shutil.copy(REPOSITORY / "tools" / "peer" / name, PACKED / "peer")
    for path in FILES:
        shutil.copytree(REPOSITORY / path, PACKED / "root" / path, ignore=shutil.ignore_patterns(*LEFT_OUT))
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=REPOSITORY, check=True, capture_output=True)
    (PACKED / "commit").write_bytes(commit.stdout)
    archive = PACKED.with_suffix(".tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(PACKED, "gpu")
    for path in sorted(PACKED.iterdir()):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        print(f"{path.name:<12} {sum(file.stat().st_size for file in files) / (1 << 20):8.1f} MiB in {len(files)} files")
    size = archive.stat().st_size
    print(f"{archive}: {size / (1 << 20):.1f} MiB")
    if size > MAX_ARCHIVE:
        print(f"more than {MAX_ARCHIVE >> 20} MiB")
        return 1
    return 0
