"""DynamiCrafter's context as PyTorch computes it, for crates/divot-train/tests/train/dynamicrafter.rs.

    python xtask/peer/dynamicrafter.py crates/divot-train/tests/data/dynamicrafter
    python xtask/peer/dynamicrafter.py FOLDER --checkpoint model.ckpt

Writes `config.json` (sizes, named as in the released configuration), `tensors.json` (name and shape of every
tensor of the checkpoint), and `io.safetensors` (frames, and the context of the texts below and of the frames).
With --checkpoint, it also writes the checkpoint itself, as PyTorch Lightning does.

The checkpoint is DynamiCrafter's in miniature: the released names and layout, and numbers that are a function of
a tensor's name, which the test computes as well. The context is written from the description of the released
system: text states of the last but one block through the final norm; behind them, for each frame, what a Perceiver
reads off all tokens of the ViT after its last block.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

FRAMES, SIDE = 16, 56
# CLIP's own ids; 49406 begins a text and 49407 ends it.
TEXTS = {"a photo of a cat": [320, 1125, 539, 320, 2368], "": []}
START, END = 49406, 49407
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])

SIZES = {
    "vit": {"image_size": 28, "patch_size": 14, "width": 32, "layers": 2, "head_width": 16, "mlp_ratio": 4.0},
    "clip_embed": 24,
    "text": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
    "tok": {
        "num_frames": 5, "input_dim": 32, "hidden_size": 16, "width": 24, "temporal_depth": 1, "pool_size": 2,
        "use_norm": True, "transformer_depth": 1, "resampler_depth": 1, "down_num_tokens": 8, "resampler_dim": 12,
    },
    "proj": {
        "dim": 24, "depth": 1, "dim_head": 8, "heads": 3, "num_queries": 90, "embedding_dim": 12, "output_dim": 32,
    },
    "unet": {
        "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [1],
        "num_res_blocks": 1, "channel_mult": [1, 2], "dropout": 0.1, "num_head_channels": 16,
        "transformer_depth": 1, "context_dim": 32, "use_linear": True, "temporal_conv": True,
        "temporal_attention": True, "temporal_selfatt_only": True, "use_relative_position": False,
        "use_causal_attention": False, "addition_attention": True, "image_cross_attention": True,
        "default_fs": 3, "fs_condition": True,
    },
    "vae": {"z_channels": 4, "ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": []},
    "latent": [FRAMES, 8, 8],
}  # fmt: skip
# The image Perceiver, whose sizes are in the shapes of its tensors. Its heads are as wide as Divot's.
IMAGE = {"dim": 40, "depth": 2, "heads": 3, "head_dim": SIZES["proj"]["dim_head"], "tokens": 16}


# ---------------------------------------------------------------------------------------------------------
# Names and shapes
# ---------------------------------------------------------------------------------------------------------


def below(prefix, tensors):
    return {f"{prefix}.{name}": shape for name, shape in tensors.items()}


def linear(inputs, outputs, bias=True):
    return {"weight": (outputs, inputs)} | ({"bias": (outputs,)} if bias else {})


def norm(width):
    return {"weight": (width,), "bias": (width,)}


def conv(inputs, outputs, *kernel):
    return {"weight": (outputs, inputs, *kernel), "bias": (outputs,)}


def clip_blocks(width, hidden, count):
    block = (
        below("ln_1", norm(width))
        | {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)}
        | below("attn.out_proj", linear(width, width))
        | below("ln_2", norm(width))
        | below("mlp.c_fc", linear(width, hidden))
        | below("mlp.c_proj", linear(hidden, width))
    )
    return {k: v for i in range(count) for k, v in below(f"transformer.resblocks.{i}", block).items()}


def vision_tower(c, embed):
    width, patch = c["width"], c["patch_size"]
    return (
        {"class_embedding": (width,), "positional_embedding": (1 + (c["image_size"] // patch) ** 2, width)}
        | {"proj": (width, embed), "conv1.weight": (width, 3, patch, patch)}
        | below("ln_pre", norm(width))
        | clip_blocks(width, int(width * c["mlp_ratio"]), c["layers"])
        | below("ln_post", norm(width))
    )


def text_rest(c, embed):
    """The text tower without its blocks, as both towers of the checkpoint have it."""
    width = c["width"]
    return {
        "positional_embedding": (c["context_length"], width),
        "text_projection": (width, embed),
        "logit_scale": (),
    } | below("ln_final", norm(width))


def text_tower(c, embed):
    width = c["width"]
    blocks = clip_blocks(width, 4 * width, c["layers"])
    return text_rest(c, embed) | {"token_embedding.weight": (c["vocab_size"], width)} | blocks


def perceiver(inputs, outputs, queries, dim, depth, heads, head_dim):
    inner = heads * head_dim
    layer = (
        below("0.norm1", norm(dim))
        | below("0.norm2", norm(dim))
        | below("0.to_q", linear(dim, inner, bias=False))
        | below("0.to_kv", linear(dim, 2 * inner, bias=False))
        | below("0.to_out", linear(inner, dim, bias=False))
        | below("1.0", norm(dim))
        | below("1.1", linear(dim, 4 * dim, bias=False))
        | below("1.3", linear(4 * dim, dim, bias=False))
    )
    layers = {k: v for i in range(depth) for k, v in below(f"layers.{i}", layer).items()}
    ends = below("proj_in", linear(inputs, dim)) | below("proj_out", linear(dim, outputs))
    return {"latents": (1, queries, dim)} | ends | below("norm_out", norm(outputs)) | layers


def attention(dim, inner, context):
    """Attention with the second keys and values, and their factor, if there is a context."""
    split = {} if context is None else {"alpha": ()}
    for name in ["to_k", "to_v"] + ([] if context is None else ["to_k_ip", "to_v_ip"]):
        split |= below(name, linear(context or dim, inner, bias=False))
    return split | below("to_q", linear(dim, inner, bias=False)) | below("to_out.0", linear(inner, dim))


def transformer(channels, inner, context, depth, kernel=()):
    block = (
        below("attn1", attention(inner, inner, None))
        | below("attn2", attention(inner, inner, context))
        | below("ff.net.0.proj", linear(inner, 8 * inner))
        | below("ff.net.2", linear(4 * inner, inner))
    )
    for i in range(1, 4):
        block |= below(f"norm{i}", norm(inner))
    blocks = {k: v for i in range(depth) for k, v in below(f"transformer_blocks.{i}", block).items()}
    ends = below("proj_in", conv(channels, inner, *kernel)) | below("proj_out", conv(inner, channels, *kernel))
    return below("norm", norm(channels)) | ends | blocks


def residual(inputs, outputs, embedding):
    tensors = (
        below("in_layers.0", norm(inputs))
        | below("in_layers.2", conv(inputs, outputs, 3, 3))
        | below("emb_layers.1", linear(embedding, outputs))
        | below("out_layers.0", norm(outputs))
        | below("out_layers.3", conv(outputs, outputs, 3, 3))
        | ({} if inputs == outputs else below("skip_connection", conv(inputs, outputs, 1, 1)))
    )
    for i, place in enumerate([2, 3, 3, 3], 1):
        tensors |= below(f"temopral_conv.conv{i}.0", norm(outputs))
        tensors |= below(f"temopral_conv.conv{i}.{place}", conv(outputs, outputs, 3, 1, 1))
    return tensors


def unet(c):
    """Eight input channels: four of noise, four of the conditional image's latents."""
    width, context, depth, head = c["model_channels"], c["context_dim"], c["transformer_depth"], c["num_head_channels"]
    embedding, repeats, last = 4 * width, c["num_res_blocks"], len(c["channel_mult"]) - 1
    tensors = below("input_blocks.0.0", conv(8, width, 3, 3))
    for name in ["time_embed", "fps_embedding"]:
        tensors |= below(f"{name}.0", linear(width, embedding)) | below(f"{name}.2", linear(embedding, embedding))
    tensors |= below("init_attn.0", transformer(width, 8 * head, None, depth, (1,)))

    def attentions(channels):
        return [transformer(channels, channels, context, depth), transformer(channels, channels, None, depth)]

    def stage(name, layers):
        return {k: v for i, layer in enumerate(layers) for k, v in below(f"{name}.{i}", layer).items()}

    def level(inputs, outputs, rate):
        attends = rate in c["attention_resolutions"]
        return [residual(inputs, outputs, embedding), *(attentions(outputs) if attends else [])]

    channels, skips, place = width, [width], 1
    for i, factor in enumerate(c["channel_mult"]):
        for _ in range(repeats):
            tensors |= stage(f"input_blocks.{place}", level(channels, factor * width, 2**i))
            channels = factor * width
            skips.append(channels)
            place += 1
        if i < last:
            tensors |= below(f"input_blocks.{place}.0.op", conv(channels, channels, 3, 3))
            skips.append(channels)
            place += 1
    middle = [residual(channels, channels, embedding), *attentions(channels), residual(channels, channels, embedding)]
    tensors |= stage("middle_block", middle)
    place = 0
    for i, factor in reversed(list(enumerate(c["channel_mult"]))):
        for j in range(repeats + 1):
            layers = level(channels + skips.pop(), factor * width, 2**i)
            channels = factor * width
            if i > 0 and j == repeats:
                layers.append(below("conv", conv(channels, channels, 3, 3)))
            tensors |= stage(f"output_blocks.{place}", layers)
            place += 1
    return tensors | below("out.0", norm(channels)) | below("out.2", conv(channels, c["out_channels"], 3, 3))


def vae(c):
    latents, width, factors, repeats = c["z_channels"], c["ch"], c["ch_mult"], c["num_res_blocks"]
    last = len(factors) - 1

    def block(inputs, outputs):
        return (
            below("norm1", norm(inputs))
            | below("conv1", conv(inputs, outputs, 3, 3))
            | below("norm2", norm(outputs))
            | below("conv2", conv(outputs, outputs, 3, 3))
            | ({} if inputs == outputs else below("nin_shortcut", conv(inputs, outputs, 1, 1)))
        )

    def middle(channels):
        tensors = below("mid.block_1", block(channels, channels)) | below("mid.block_2", block(channels, channels))
        tensors |= below("mid.attn_1.norm", norm(channels))
        for name in ["q", "k", "v", "proj_out"]:
            tensors |= below(f"mid.attn_1.{name}", conv(channels, channels, 1, 1))
        return tensors

    encoder, channels = below("conv_in", conv(3, width, 3, 3)), width
    for i, factor in enumerate(factors):
        for j in range(repeats):
            encoder |= below(f"down.{i}.block.{j}", block(channels, factor * width))
            channels = factor * width
        if i < last:
            encoder |= below(f"down.{i}.downsample.conv", conv(channels, channels, 3, 3))
    encoder |= middle(channels) | below("norm_out", norm(channels))
    encoder |= below("conv_out", conv(channels, 2 * latents, 3, 3))

    decoder = below("conv_in", conv(latents, channels, 3, 3)) | middle(channels)
    for i, factor in reversed(list(enumerate(factors))):
        for j in range(repeats + 1):
            decoder |= below(f"up.{i}.block.{j}", block(channels, factor * width))
            channels = factor * width
        if i > 0:
            decoder |= below(f"up.{i}.upsample.conv", conv(channels, channels, 3, 3))
    decoder |= below("norm_out", norm(channels)) | below("conv_out", conv(channels, 3, 3, 3))
    return (
        below("encoder", encoder)
        | below("decoder", decoder)
        | below("quant_conv", conv(2 * latents, 2 * latents, 1, 1))
        | below("post_quant_conv", conv(latents, latents, 1, 1))
    )


def checkpoint():
    """Name → shape of everything in the checkpoint, with what no stage of training takes from it."""
    embed, queries = SIZES["clip_embed"], IMAGE["tokens"] * FRAMES
    image = {k: IMAGE[k] for k in ("dim", "depth", "heads", "head_dim")}
    buffers = ["betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "scale_arr"]
    return (
        dict.fromkeys(buffers, (1000,))
        | below("model.diffusion_model", unet(SIZES["unet"]))
        | below("first_stage_model", vae(SIZES["vae"]))
        | below("cond_stage_model.model", text_tower(SIZES["text"], embed))
        | below("embedder.model", text_rest(SIZES["text"], embed))
        | below("embedder.model.visual", vision_tower(SIZES["vit"], embed))
        | below("image_proj_model", perceiver(SIZES["vit"]["width"], SIZES["unet"]["context_dim"], queries, **image))
    )


# ---------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------


def uniform(name, count):
    """Numbers in [-1, 1) of 24 bits: SplitMix64, seeded with the FNV-1a hash of a name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0


def draw(name, shape):
    """Weights of norms near 1, other vectors near 0, and matrices of variance 1 / inputs."""
    if len(shape) < 2:
        centre, bound = float(name.endswith("weight")), 0.3
    else:
        centre, bound = 0.0, math.sqrt(3.0 / math.prod(shape[1:]))
    values = centre + bound * uniform(name, math.prod(shape))
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


# ---------------------------------------------------------------------------------------------------------
# The context
# ---------------------------------------------------------------------------------------------------------


class Weights:
    """The tensors below a prefix."""

    def __init__(self, tensors, prefix):
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name):
        return self.tensors[f"{self.prefix}.{name}"]

    def below(self, name):
        return Weights(self.tensors, f"{self.prefix}.{name}")

    def linear(self, name, x):
        return F.linear(x, self[f"{name}.weight"], self.tensors.get(f"{self.prefix}.{name}.bias"))

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], 1e-5)


def attend(q, k, v, heads, causal=False):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)


def clip_block(w, x, heads, causal):
    q, k, v = F.linear(w.norm("ln_1", x), w["attn.in_proj_weight"], w["attn.in_proj_bias"]).chunk(3, -1)
    x = x + w.linear("attn.out_proj", attend(q, k, v, heads, causal))
    return x + w.linear("mlp.c_proj", F.gelu(w.linear("mlp.c_fc", w.norm("ln_2", x))))


def text_states(w, ids):
    c = SIZES["text"]
    x = F.embedding(ids, w["token_embedding.weight"]) + w["positional_embedding"]
    for i in range(c["layers"] - 1):
        x = clip_block(w.below(f"transformer.resblocks.{i}"), x, c["heads"], causal=True)
    return w.norm("ln_final", x)


def gaussian(factor):
    sigma = max((factor - 1) / 2, 0.001)
    size = int(max(4 * sigma, 3)) // 2 * 2 + 1
    x = torch.arange(size, dtype=torch.float64) - size // 2
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    return (kernel / kernel.sum()).float()


def vit_images(frames, size):
    """Blurred if they shrink, resized with corners aligned, and normalised."""
    kernel = gaussian(frames.shape[-1] / size)
    edge, taps = len(kernel) // 2, kernel.repeat(3, 1, 1, 1)
    blurred = F.pad(frames, (edge,) * 4, mode="reflect")
    blurred = F.conv2d(F.conv2d(blurred, taps, groups=3), taps.transpose(2, 3), groups=3)
    images = F.interpolate(blurred, (size, size), mode="bicubic", align_corners=True)
    return ((images + 1) / 2 - MEAN[:, None, None]) / STD[:, None, None]


def vit_tokens(w, frames):
    c = SIZES["vit"]
    images = vit_images(frames, c["image_size"])
    patches = F.conv2d(images, w["conv1.weight"], stride=c["patch_size"]).flatten(2).transpose(1, 2)
    x = torch.cat([w["class_embedding"].expand(len(images), 1, -1), patches], 1)
    x = w.norm("ln_pre", x + w["positional_embedding"])
    for i in range(c["layers"]):
        x = clip_block(w.below(f"transformer.resblocks.{i}"), x, c["width"] // c["head_width"], causal=False)
    return x


def image_tokens(w, tokens):
    x = w.linear("proj_in", tokens)
    latents = w["latents"].expand(len(x), -1, -1)
    for i in range(IMAGE["depth"]):
        attention, mlp = w.below(f"layers.{i}.0"), w.below(f"layers.{i}.1")
        given, asking = attention.norm("norm1", x), attention.norm("norm2", latents)
        k, v = attention.linear("to_kv", torch.cat([given, asking], 1)).chunk(2, -1)
        read = attend(attention.linear("to_q", asking), k, v, IMAGE["heads"])
        latents = latents + attention.linear("to_out", read)
        latents = latents + mlp.linear("3", F.gelu(mlp.linear("1", mlp.norm("0", latents))))
    out = w.norm("norm_out", w.linear("proj_out", latents))
    return out.unflatten(1, (FRAMES, IMAGE["tokens"]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    shapes = checkpoint()
    tensors = {name: draw(name, shape) for name, shape in shapes.items()}

    length = SIZES["text"]["context_length"]
    ids = torch.zeros(len(TEXTS), length, dtype=torch.long)
    for row, words in zip(ids, TEXTS.values()):
        row[: len(words) + 2] = torch.tensor([START, *words, END])
    frames = torch.from_numpy(uniform("frames", len(TEXTS) * 3 * SIDE**2).astype(np.float32))
    frames = frames.reshape(len(TEXTS), 3, SIDE, SIDE)
    vit = vit_tokens(Weights(tensors, "embedder.model.visual"), frames)
    io = {
        "frames": frames,
        "text": text_states(Weights(tensors, "cond_stage_model.model"), ids),
        "image": image_tokens(Weights(tensors, "image_proj_model"), vit),
    }

    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "config.json").write_text(json.dumps(SIZES, indent=1) + "\n")
    names = json.dumps(shapes, separators=(",", ":")).replace("],", "],\n")
    (arguments.folder / "tensors.json").write_text(names + "\n")
    save_file({k: v.contiguous() for k, v in io.items()}, arguments.folder / "io.safetensors")
    if arguments.checkpoint:
        lightning = {"epoch": 3, "global_step": 100, "pytorch-lightning_version": "1.9.3"}
        torch.save(lightning | {"state_dict": tensors}, arguments.checkpoint)


if __name__ == "__main__":
    main()
