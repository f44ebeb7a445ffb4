#!/usr/bin/env python3
"""What PyTorch and transformers read from a folder that `divot export --released` wrote. Used by hand.

    python3 -m venv VENV && VENV/bin/pip install torch transformers
    divot export MODEL --to RELEASED --released
    cargo run --release -p xtask --example scores -- MODEL PART TEXT > scores.json
    VENV/bin/python load_llm.py RELEASED scores.json Divot_sft_gen

Loads every .bin file with `weights_only`, and every language model with `MistralForCausalLM` and `AutoTokenizer`.
With scores, compares the ids and the scores of the named language model with ours. PART of a Divot_sft_gen is
llm-generation. Prints a line for each file; the exit status is 1 if one is not as it should be.
"""

import json
import sys
from pathlib import Path

try:
    import torch
    from transformers import AutoTokenizer, MistralForCausalLM
except ImportError as problem:
    sys.exit(f"{problem}; install the PyPI packages `torch` and `transformers`")

# The relative error of the scores, as in `cargo xtask parity`.
LIMIT = 1e-4


def main():
    if len(sys.argv) not in (2, 4):
        sys.exit(__doc__)
    released = Path(sys.argv[1])
    failed = False

    def report(good, line):
        nonlocal failed
        failed |= not good
        print(line if good else f"{line}  <- WRONG")

    for path in sorted(released.rglob("*.bin")):
        state = torch.load(path, weights_only=True, map_location="cpu")
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
        count = sum(tensor.numel() for tensor in state.values())
        report(finite, f"{path.relative_to(released)}: {len(state)} tensors, {count} numbers")

    tokenizer = None
    for folder in sorted(released.glob("*/llm")):
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(released / "cvlm_mistral_instruct_tokenizer")
        model, info = MistralForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        lost = {kind: names for kind, names in info.items() if names and kind != "error_msgs"}
        name = folder.relative_to(released)
        report(not lost, f"{name}: {model.num_parameters()} parameters{f', {lost}' if lost else ''}")
        report(
            len(tokenizer) <= model.config.vocab_size,
            f"{name}: {len(tokenizer)} tokens, {model.config.vocab_size} rows",
        )
        if len(sys.argv) != 4 or folder.parent.name != sys.argv[3]:
            continue
        ours = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        ids = tokenizer.encode(ours["text"], add_special_tokens=False)
        report(ids == ours["ids"], f"{name}: {len(ids)} ids of {ours['text']!r}")
        with torch.no_grad():
            theirs = model.eval()(torch.tensor([ours["ids"]])).logits[0].double()
        scores = torch.tensor(ours["scores"], dtype=torch.float64).reshape(theirs.shape)
        error = float((scores - theirs).norm() / theirs.norm())
        report(error < LIMIT, f"{name}: relative error of the scores {error:.1e}")
    sys.exit(failed)


main()
