#!/usr/bin/env python3
"""llama.cpp's side of `cargo xtask bench --peer llama.cpp`.

    llama.py --serve llm-prompt|llm-token --dtype f32|f16|bf16|q8|q4 --threads N
    llama.py --scores WEIGHTS IDS OUT --dtype f32|f16|bf16|q8|q4|q4_k_m

--serve follows the protocol of peer.py. Its decoder has 1.1 B parameters with random values, which are the same in
all layers: they do not affect the time.

--scores reads a decoder that the bench saved as safetensors (weights [input, output]), and writes the scores of
every token of IDS, a JSON list, to OUT as float32.

The file that llama.cpp reads is written here with the package gguf, in the formats Q8_0 and Q4_0. Their blocks are
those of ours: 32 values with a scale in f16. Q4_K_M is what llama.cpp itself makes of f32. Packages: llama-cpp-python, gguf, numpy, safetensors.
"""

import argparse
import ctypes
import json
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

# Libraries may print to standard output, which must not mix with the answers.
ANSWERS, sys.stdout = sys.stdout, sys.stderr


def say(**message):
    print(json.dumps(message), file=ANSWERS, flush=True)


try:
    import gguf
    import llama_cpp
    import numpy as np
except ImportError as problem:
    say(error=f"{problem}; install llama-cpp-python, gguf, numpy and safetensors, or name another Python with --python")
    sys.exit(1)

TYPES = gguf.GGMLQuantizationType
FORMATS = {"f32": TYPES.F32, "f16": TYPES.F16, "bf16": TYPES.BF16, "q8": TYPES.Q8_0, "q4": TYPES.Q4_0}

# Blocks of 256 values, some of them with more bits.
MIXED = "q4_k_m"

# 1.1 B parameters in Mistral's proportions, as in works.rs.
SIZES = {"vocabulary": 32000, "width": 2048, "inner": 5632, "layers": 22, "heads": 32, "key_value_heads": 4}
PROMPT, ROOM = 512, 2048

NAMES = {
    "embed_tokens.weight": "token_embd",
    "norm.gamma": "output_norm",
    "lm_head.weight": "output",
    "input_layernorm.gamma": "attn_norm",
    "post_attention_layernorm.gamma": "ffn_norm",
    "self_attn.q_proj.weight": "attn_q",
    "self_attn.k_proj.weight": "attn_k",
    "self_attn.v_proj.weight": "attn_v",
    "self_attn.o_proj.weight": "attn_output",
    "mlp.gate_proj.weight": "ffn_gate",
    "mlp.up_proj.weight": "ffn_up",
    "mlp.down_proj.weight": "ffn_down",
}


def random_weights(sizes):
    """Name and values of each tensor, [output, input]."""
    draw = np.random.default_rng(0)
    width, inner = sizes["width"], sizes["inner"]
    narrow = width // sizes["heads"] * sizes["key_value_heads"]
    shapes = {"attn_q": (width, width), "attn_k": (narrow, width), "attn_v": (narrow, width)}
    shapes |= {"attn_output": (width, width), "ffn_gate": (inner, width), "ffn_up": (inner, width)}
    shapes |= {"ffn_down": (width, inner)}
    layer = {name: draw.standard_normal(shape, np.float32) * 0.02 for name, shape in shapes.items()}
    layer |= {"attn_norm": np.ones(width, np.float32), "ffn_norm": np.ones(width, np.float32)}
    table = draw.standard_normal((sizes["vocabulary"], width), np.float32) * 0.02
    yield from {"token_embd": table, "output": table, "output_norm": np.ones(width, np.float32)}.items()
    for i in range(sizes["layers"]):
        for name, values in layer.items():
            yield f"blk.{i}.{name}", values


def saved_weights(path, sizes):
    """Like random_weights, from a file of the bench. Fills in the sizes."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = file.metadata()
        sizes |= {name: int(metadata[name]) for name in SIZES}
        for key in file.keys():
            values = file.get_tensor(key)
            found = re.match(r"layers\.(\d+)\.(.*)", key)
            name = NAMES[found[2] if found else key]
            if values.ndim == 2 and name != "token_embd":
                values = values.T
            if name in ("attn_q", "attn_k"):
                # llama.cpp rotates neighbouring pairs, and Mistral the two halves of a head.
                heads = sizes["heads"] if name == "attn_q" else sizes["key_value_heads"]
                halves = values.reshape(heads, 2, -1, values.shape[1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
            yield (f"blk.{found[1]}.{name}" if found else name), np.ascontiguousarray(values, np.float32)


def write(path, sizes, weights, dtype):
    """Writes a GGUF file. Returns the number of parameters."""
    writer = gguf.GGUFWriter(path, "llama")
    tensors, parameters, packed = [], 0, {}
    for name, values in weights:
        parameters += values.size
        kind = TYPES.F32 if values.ndim == 1 else FORMATS[dtype]
        key = (id(values), kind)
        if key not in packed:  # the values are kept, so that their id stays theirs
            packed[key] = values, gguf.quants.quantize(values, kind)
        tensors.append((f"{name}.weight", packed[key][1], kind))
    writer.add_context_length(ROOM)
    writer.add_embedding_length(sizes["width"])
    writer.add_block_count(sizes["layers"])
    writer.add_feed_forward_length(sizes["inner"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(sizes["width"] // sizes["heads"])
    writer.add_vocab_size(sizes["vocabulary"])
    writer.add_tokenizer_model("no_vocab")
    for name, values, kind in tensors:
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return parameters


def write_random(path, dtype):
    return write(path, SIZES, random_weights(SIZES), dtype)


def load(path, threads, **options):
    options = {"n_ctx": ROOM, "n_batch": PROMPT, "n_ubatch": PROMPT, "verbose": False} | options
    return llama_cpp.Llama(str(path), n_threads=threads, n_threads_batch=threads, **options)


def best(llama):
    scores = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
    return int(np.ctypeslib.as_array(scores, (llama.n_vocab(),)).argmax())


@llama_cpp.llama_log_callback
def unheard(level, text, data):
    pass


def quantized(path):
    """Returns a file in Q4_K_M beside one in f32."""
    made = path.with_suffix(".q4_k_m.gguf")
    llama_cpp.llama_log_set(unheard, None)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    failed = llama_cpp.llama_model_quantize(str(path).encode(), str(made).encode(), ctypes.byref(options))
    if failed:
        raise RuntimeError(f"{path} cannot be quantised")
    return made


def serve(work, dtype, threads, folder):
    path = Path(folder) / "model.gguf"
    with multiprocessing.Pool(1) as pool:  # its memory is not ours
        parameters = pool.apply(write_random, (path, dtype))
    llama = load(path, threads)
    prompt = [3 + i % 500 for i in range(PROMPT)]

    def read_prompt():
        llama.reset()
        llama._ctx.kv_cache_clear()
        llama.eval(prompt)
        return best(llama)

    last = read_prompt()

    def read_token():
        nonlocal last
        llama.eval([last])
        last = best(llama)

    run = read_token if work == "llm-token" else read_prompt
    run()
    say(ready=True, parameters=parameters, device=f"llama.cpp of llama-cpp-python {llama_cpp.__version__}")
    for line in sys.stdin:
        if line.strip() == "run":
            started = time.perf_counter()
            run()
            say(seconds=time.perf_counter() - started)
        else:
            say(peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def scores(weights, ids, out, dtype, threads, folder):
    path, sizes = Path(folder) / "model.gguf", {}
    write(path, sizes, list(saved_weights(weights, sizes)), "f32" if dtype == MIXED else dtype)
    if dtype == MIXED:
        path = quantized(path)
    cache = {"type_k": TYPES.F32, "type_v": TYPES.F32, "flash_attn": False}
    llama = load(path, threads, logits_all=True, **cache)
    ids = json.loads(Path(ids).read_text())
    llama.eval(ids)
    llama.scores[: len(ids)].astype("<f4").tofile(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=["llm-prompt", "llm-token"])
    parser.add_argument("--scores", nargs=3, metavar=("WEIGHTS", "IDS", "OUT"))
    parser.add_argument("--dtype", choices=[*FORMATS, MIXED], default="q8")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.serve and given.dtype == MIXED:
            parser.error(f"{MIXED} is for --scores")
        elif given.serve:
            serve(given.serve, given.dtype, given.threads, folder)
        elif given.scores:
            scores(*given.scores, given.dtype, given.threads, folder)
        else:
            parser.error("either --serve or --scores is needed")


if __name__ == "__main__":
    main()
