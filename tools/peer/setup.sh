#!/usr/bin/env bash
# Makes the Python environment of the PyTorch peer (benchmark and golden tooling only: knet itself has no Python).
#
#   tools/peer/setup.sh [VENV]      VENV defaults to tools/peer/.venv
#
# The newest torch from the package index is taken. On x86-64 Linux its default wheel is the CUDA build, whose
# libtorch_python.so links libcudart, cuDNN, cuBLAS, ... at load time: installed with --no-deps it fails to import even
# when only the CPU is used, so the CUDA wheels come along (5.6 GB on disk, about 90 s on a fast line). PEER_TORCH pins
# another build, for instance PEER_TORCH=torch==2.9.1; pip then picks the torchvision that belongs to it (its deformable
# convolution alone is used). torch.compile on the CPU also needs a C++ compiler (g++). OpenVINO, NNCF, ONNX Runtime
# and ONNX, which runtimes.py races, are 400 MB more.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-$here/.venv}
python=${PYTHON:-python3}

"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade pip
"$venv/bin/python" -m pip install --quiet "${PEER_TORCH:-torch}" torchvision numpy safetensors pillow opencv-python-headless scipy
"$venv/bin/python" -m pip install --quiet openvino nncf onnxruntime onnx onnxscript
"$venv/bin/python" - <<'PY'
import cv2, numpy, PIL, safetensors, scipy, torch, torchvision
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, numpy {numpy.__version__}, OpenCV {cv2.__version__}, "
      f"{torch.get_num_threads()} threads, CPU capability {torch.backends.cpu.get_cpu_capability()}")
PY
