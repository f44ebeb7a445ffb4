#!/usr/bin/env bash
# Measures divot on a machine with a GPU, which needs neither Rust nor a network. All of it takes about a quarter of an
# hour, and each of its parts less than ten minutes.
# Everything runs twice: at first all at the same time, because one thread of each program compiles its kernels, and
# then one by one. Stage 1 at the released sizes takes most of the memory, and runs alone.
#
#   xtask/gpu/run.sh pack gpu.tar.xz     on a machine with Rust: builds the programs with CUDA and wgpu, and packs them,
#                                        with CUDA's other compiler too if CPP=1
#   tar -xJf gpu.tar.xz && gpu/run.sh    on the machine with the GPU: writes gpu/results
#
# PARTS names what is measured (parity inference training), DEVICES the devices (cuda wgpu), LIMIT the seconds of each run
# (300). PyTorch is measured beside divot if
# DIVOT_PYTHON, or python3, has it, with the packages of xtask/fixture/requirements.txt.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ "${1:-}" = pack ]; then
    archive=${2:?name the archive, such as gpu.tar.xz}
    cd "$here/../.."
    features=${FEATURES-cuda,wgpu,tuned}
    cargo build --release --locked --package xtask --features "$features"
    target=${CARGO_TARGET_DIR:-target}/release
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/gpu/fixtures" "$work/gpu/fixture"
    cp "$target/xtask" xtask/gpu/run.sh "$work/gpu/"
    strip "$work/gpu/xtask"
    ln -s xtask "$work/gpu/divot" # one program under both names
    cp -r xtask/peer examples/recipes "$work/gpu/"
    cp xtask/fixture/*.py "$work/gpu/fixture/" # the peer's networks
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
mkdir -p "$results/first"
python=${DIVOT_PYTHON:-python3}
peers=()
if "$python" -c "import torch" 2> /dev/null; then peers=(--peer --python "$python"); fi
export CUBECL_AUTOTUNE_LEVEL=${CUBECL_AUTOTUNE_LEVEL:-minimal}
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null | tee "$results/gpu.txt" || true

failed=0
declare -A firsts
measure() { # NAME COMMAND…: what it prints goes into results/NAME.txt, or results/first/NAME.txt
    local name=$1 started=$SECONDS status=0
    shift
    # Each has its own store of kernels: programs that run at the same time do not share one.
    export CUBECL_ENVIRONMENT=divot-$name
    if [ $first = yes ]; then
        while [ "$(jobs -r | wc -l)" -ge "$(nproc)" ]; do sleep 1; done
        timeout "${LIMIT:-300}" "$@" > "$results/first/$name.txt" 2>&1 &
        firsts[$name]=$!
        return
    fi
    timeout "${LIMIT:-300}" "$@" > "$results/$name.txt" 2>&1 || status=$?
    printf '%-28s %4s s  %s\n' "$name" $((SECONDS - started)) "$([ $status = 0 ] && echo done || echo "exit code $status")"
    [ $status = 0 ] || { failed=1; tail -n 3 "$results/$name.txt"; }
}

device=${DEVICES:-cuda}
device=${device%% *}

parity() {
    local on fixture
    for on in ${DEVICES:-cuda wgpu}; do
        for fixture in fixtures/*; do
            measure "parity-$on-${fixture##*/}" ./xtask parity "$fixture" --device "$on"
        done
    done
    if [ -x ./xtask-cpp ]; then
        measure "parity-cpp-project" ./xtask-cpp parity fixtures/project --device "$device"
    fi
}

inference() {
    local type work
    for type in bf16 f16; do
        for work in tokenizer unet vae-decode guided-step llm-prompt llm-token; do
            measure "bench-$work-$type" ./xtask bench --only "$work" --dtype "$type" --device "$device" --repeat 10 \
                "${peer[@]}" --peer-attention fused
        done
    done
    measure bench-unet-f32 ./xtask bench --only unet --device "$device" --repeat 10 "${peer[@]}"
    measure profile-unet-bf16 ./xtask bench --profile --only unet --dtype bf16 --device "$device"
    if [ -x ./xtask-cpp ]; then
        for work in tokenizer unet; do
            measure "bench-$work-bf16-cpp" ./xtask-cpp bench --only "$work" --dtype bf16 --device "$device" --repeat 10
        done
    fi
}

training() {
    local work
    for work in train-stage1 train-mid train-llm; do
        measure "bench-$work-f32" ./xtask bench --only "$work" --device "$device" --repeat 10 "${peer[@]}"
    done
    if [ ${#peers[@]} != 0 ]; then
        for work in train-stage1 train-llm; do
            measure "bench-$work-f32-compiled" ./xtask bench --only "$work" --device "$device" --repeat 10 "${peer[@]}" \
                --peer-compile --peer-attention fused
        done
    fi
    for pid in "${firsts[@]}"; do tail --pid="$pid" -f /dev/null; done
    # One step of stage 1, with its memory; at the released sizes unless SIZES names another preset.
    measure stage1 ./divot train recipes/stage1.toml --dry-run --device "$device" \
        --set "model.sizes=${SIZES:-divot}" --set 'model.start={"tokenizer.vision" = "random", "detokenizer.vae" = "random"}' \
        --set 'data=[{source = {format = "videos", world = {}}}]' --set batch=1 --set micro_batch=1 \
        --set precision=bf16 --set gradient_checkpointing=true
}

everything() {
    local part
    for part in ${PARTS:-parity inference training}; do "$part"; done
}

first=yes peer=()
everything
for name in "${!firsts[@]}"; do
    wait "${firsts[$name]}" || { failed=1; echo "first run of $name: exit code $?"; }
done
echo "first runs: $SECONDS s"
first=no peer=("${peers[@]}")
everything
exit $failed
