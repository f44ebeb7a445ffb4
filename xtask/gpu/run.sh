#!/usr/bin/env bash
# Measures divot on a machine with a GPU, which needs neither Rust nor a network. It takes about ten minutes.
#
#   xtask/gpu/run.sh pack gpu.tar.xz     on a machine with Rust: builds the programs with CUDA and wgpu, and packs them,
#                                        with CUDA's other compiler too if CPP=1
#   tar -xJf gpu.tar.xz && gpu/run.sh    on the machine with the GPU: writes gpu/results
#
# DEVICES names the devices (cuda wgpu), LIMIT the seconds of one measurement (150). PyTorch is measured beside divot if
# DIVOT_PYTHON, or python3, has it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ "${1:-}" = pack ]; then
    archive=${2:?name the archive, such as gpu.tar.xz}
    cd "$here/../.."
    features=${FEATURES-cuda,wgpu}
    cargo build --release --locked --package xtask --package divot-cli --features "$features"
    target=${CARGO_TARGET_DIR:-target}/release
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/gpu/fixtures"
    cp "$target/xtask" "$target/divot" xtask/gpu/run.sh "$work/gpu/"
    strip "$work/gpu/xtask" "$work/gpu/divot"
    cp -r xtask/peer examples/recipes "$work/gpu/"
    cp -r tests/fixture "$work/gpu/fixtures/project"
    if [ -n "${CPP:-}" ]; then
        cargo build --release --locked --package xtask --features "$features,cuda-cpp"
        cp "$target/xtask" "$work/gpu/xtask-cpp"
        strip "$work/gpu/xtask-cpp"
    fi
    if [ -n "${DIVOT_FIXTURE:-}" ]; then cp -rL "$DIVOT_FIXTURE" "$work/gpu/fixtures/released"; fi
    tar -C "$work" -cJf "$archive" gpu
    ls -l "$archive"
    exit
fi

cd "$here"
results=$here/results
mkdir -p "$results"
python=${DIVOT_PYTHON:-python3}
peer=()
if "$python" -c "import torch" 2> /dev/null; then peer=(--peer --python "$python"); fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null | tee "$results/gpu.txt" || true

failed=0
measure() { # NAME COMMAND…: what it prints goes into results/NAME.txt
    local name=$1 started=$SECONDS status=0
    shift
    timeout "${LIMIT:-150}" "$@" > "$results/$name.txt" 2>&1 || status=$?
    printf '%-28s %4s s  %s\n' "$name" $((SECONDS - started)) "$([ $status = 0 ] && echo done || echo "exit code $status")"
    [ $status = 0 ] || { failed=1; tail -n 3 "$results/$name.txt"; }
}

for device in ${DEVICES:-cuda wgpu}; do
    for fixture in fixtures/*; do
        measure "parity-$device-${fixture##*/}" ./xtask parity "$fixture" --device "$device"
    done
done
device=${DEVICES:-cuda}
device=${device%% *}
for type in bf16 f16; do
    for work in tokenizer unet vae-decode llm-token; do
        measure "bench-$work-$type" ./xtask bench --only "$work" --dtype "$type" --device "$device" --repeat 16 "${peer[@]}"
    done
done
if [ -x ./xtask-cpp ]; then
    measure "parity-cpp-project" ./xtask-cpp parity fixtures/project --device "$device"
    for work in tokenizer unet; do
        measure "bench-$work-bf16-cpp" ./xtask-cpp bench --only "$work" --dtype bf16 --device "$device" --repeat 16
    done
fi
if [ ${#peer[@]} != 0 ]; then
    measure bench-unet-compiled ./xtask bench --only unet --dtype bf16 --device "$device" "${peer[@]}" --peer-compile
fi
# One step of stage 1, with its memory; at the released sizes unless SIZES names another preset.
measure stage1 ./divot train recipes/stage1.toml --dry-run --device "$device" \
    --set "model.sizes=${SIZES:-divot}" --set 'model.start={"tokenizer.vision" = "random", "detokenizer.vae" = "random"}' \
    --set 'data=[{source = {format = "videos", world = {}}}]' --set batch=1 --set micro_batch=1 \
    --set precision=bf16 --set gradient_checkpointing=true
exit $failed
