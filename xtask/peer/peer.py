#!/usr/bin/env python3
"""PyTorch's side of `cargo xtask bench --peer`: the same works, eager as the released system runs.

    peer.py --serve WORK [--device cpu|cuda] [--dtype f32|f16|bf16] [--threads N] [--attention eager|fused] [--compile]
    peer.py --self-check      compares what is defined here with the networks of make_fixture.py

The networks are those of ../fixture/make_fixture.py, whose results equal ours (`cargo xtask bench --peer --check`).
This file adds only their sizes, a cache for the language model, fused attention, and the protocol. After one run
that is not counted, a line of JSON says that the work is ready. The line `run` on standard input is answered with
the seconds that a run took, and `peak` with the peak memory so far.

`--attention eager` computes a product, a softmax and a product, as the released UNet, Perceivers and autoencoder
do. `fused` replaces them by PyTorch's scaled_dot_product_attention. The vision tower and the tokenizer's temporal
blocks use nn.MultiheadAttention, which is fused either way.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "fixture"))
# Libraries may print to standard output, which must not mix with the answers.
ANSWERS, sys.stdout = sys.stdout, sys.stderr


def say(**message):
    print(json.dumps(message), file=ANSWERS, flush=True)


try:
    import language
    import make_fixture as fixture
    import torch
    import torch.nn.functional as F
    from diffusers.models.attention_processor import AttnProcessor
    from diffusers.utils import logging
except ImportError as problem:
    say(error=f"{problem}; install xtask/fixture/requirements.txt, or name another Python with --python")
    sys.exit(1)

logging.set_verbosity_error()  # otherwise the autoencoder reports every change of dtype
FULL = fixture.FULL
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

# 1.1 B parameters in Mistral's proportions.
LLM = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
}
PROMPT, ROOM = 512, 2048

SMALL_UNET = FULL["unet"] | {
    "model_channels": 32,
    "attention_resolutions": [1, 2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_head_channels": 32,
    "context_dim": 64,
}

# The released proportions at less than a third of the width.
MID = {
    "vit": {"image_size": 224, "patch_size": 16, "width": 384, "layers": 12, "head_width": 64, "mlp_ratio": 4.0},
    "clip_embed": 384,
    "tok": FULL["tok"]
    | {"input_dim": 384, "hidden_size": 320, "width": 240, "temporal_depth": 3, "transformer_depth": 2}
    | {"resampler_depth": 3, "resampler_dim": 96},
    "proj": FULL["proj"] | {"dim": 320, "depth": 3, "heads": 8, "embedding_dim": 96},
    "unet": FULL["unet"]
    | {
        "model_channels": 96,
        "attention_resolutions": [1, 2, 4],
        "channel_mult": [1, 2, 4],
        "num_head_channels": 32,
    },
}
# The preset `small` of divot-train, for clips of 64x64.
SMALL = {
    "vit": {"image_size": 64, "patch_size": 8, "width": 192, "layers": 6, "head_width": 64, "mlp_ratio": 4.0},
    "clip_embed": 128,
    "tok": FULL["tok"]
    | {"input_dim": 192, "hidden_size": 192, "width": 192, "temporal_depth": 1, "temporal_heads": 3}
    | {"transformer_depth": 2, "transformer_heads": 3}
    | {"resampler_depth": 2, "resampler_heads": 3, "resampler_dim": 32},
    "proj": FULL["proj"] | {"dim": 192, "depth": 2, "heads": 3, "embedding_dim": 32, "output_dim": 128},
    "unet": SMALL_UNET | {"model_channels": 64, "context_dim": 128},
    "vae": FULL["vae"] | {"ch": 32, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 1},
}
SEEN = [0, 4, 8, 12, 15]  # frames of a clip that the tokenizer sees

# 0.1 B parameters in Mistral's proportions, for the features of SMALL.
SMALL_LLM = LLM | {
    "vocab_size": 32262,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
LORA = {"rank": 32, "alpha": 32, "dropout": 0.05}
CAPTION = 30  # tokens

NO_TEXT = {"context_length": 4, "vocab_size": 4, "width": 4, "heads": 1, "layers": 1}


class Work(NamedTuple):
    modules: list
    run: Callable
    warm_up: Callable = None


class Peer:
    """Builds the works for one device, precision and form of attention."""

    def __init__(self, device, dtype, attention, compiled):
        self.device, self.dtype, self.compiled = device, DTYPES[dtype], compiled
        self.fused = attention == "fused"
        torch.set_default_device(device)
        torch.manual_seed(0)
        if self.fused:
            fixture.attend = fused_attend
        if compiled:  # each shape is compiled separately
            torch._dynamo.config.recompile_limit = 256
            torch._dynamo.config.automatic_dynamic_shapes = False

    def made(self, build):
        """Returns the network that `build` makes, with values for weights that it leaves uninitialised."""
        torch.use_deterministic_algorithms(True)  # fills uninitialised weights with NaN
        module = build()
        torch.use_deterministic_algorithms(False)
        with torch.no_grad():
            for p in module.parameters():
                if not p.sum().isfinite():
                    p.normal_(0, 0.02)
        for part in module.modules():
            if isinstance(part, torch.nn.MultiheadAttention):
                part.forward = functools.partial(self_attention, part)
        return module.to(self.dtype).eval()

    def normal(self, *shape):
        return torch.randn(shape).to(self.dtype)

    def compile(self, *modules):
        for module in modules if self.compiled else ():
            module.compile()

    def vision(self, c):
        """CLIP without its text tower."""
        visual = self.made(lambda: fixture.make_clip(c | {"text": NO_TEXT}).visual)
        self.compile(*visual.transformer.resblocks)
        return visual

    def unet(self, c):
        unet = self.made(lambda: fixture.UNet(c))
        self.compile(unet)
        return unet

    def perceiver(self, c):
        sizes = ["embedding_dim", "dim", "output_dim", "num_queries", "depth", "heads", "dim_head"]
        return self.made(lambda: fixture.Perceiver(*(c[name] for name in sizes)))

    def patches(self, visual, video):
        size = visual.image_size[0]
        return fixture.vit_tokens(visual, fixture.clip_preprocess(video, size).to(self.dtype))[:, 1:]

    def tokenizer(self):
        visual = self.vision(FULL)
        rest = self.made(lambda: fixture.Tokenizer(FULL["tok"]))
        self.compile(rest)
        video = torch.rand(5, 3, 256, 256) * 2 - 1
        return Work([visual, rest], lambda: rest(self.patches(visual, video))[1])

    def forward(self):
        unet = self.unet(FULL["unet"])
        x, context, t = self.normal(1, 4, *FULL["latent"]), self.normal(1, 125, 1024), torch.tensor([500])
        return Work([unet], lambda: unet(x, t, context))

    def vae(self):
        vae = self.made(lambda: fixture.make_vae(FULL["vae"]))
        if not self.fused:
            vae.set_attn_processor(AttnProcessor())
        self.compile(vae.encoder, vae.decoder)
        return vae

    # Frame by frame: faster here than all sixteen at once, and takes less memory. One frame warms up.

    def vae_encode(self):
        vae, clip = self.vae(), self.normal(16, 3, 256, 256).clamp(-1, 1)

        def encode(frames):
            means = [vae.encode(frame[None]).latent_dist.mean for frame in frames]
            return torch.cat(means) * fixture.VAE_SCALE

        return Work([vae], lambda: encode(clip), lambda: encode(clip[:1]))

    def vae_decode(self):
        vae, latents = self.vae(), self.normal(16, 4, 32, 32)

        def decode(frames):
            return torch.cat([vae.decode(frame[None] / fixture.VAE_SCALE).sample for frame in frames])

        return Work([vae], lambda: decode(latents), lambda: decode(latents[:1]))

    def guided_step(self):
        """Both branches of guidance, one after the other, as released."""
        unet = self.unet(FULL["unet"])
        contexts = self.normal(1, 125, 1024), self.normal(1, 125, 1024)
        x, noise, fs = torch.randn(1, 4, *FULL["latent"]), torch.randn(1, 1, 4, *FULL["latent"]), torch.tensor([3])

        def v_of(x, t):
            v, v_uncond = (unet(x.to(self.dtype), t, context, fs).to(x.dtype) for context in contexts)
            return fixture.guide(v, v_uncond, 7.5, 0.7)

        return Work([unet], lambda: fixture.sample(v_of, x, noise, steps=1, eta=1.0)[0])

    def llm(self):
        model = self.made(lambda: language.Mistral(LLM))
        return model, torch.arange(PROMPT)[None] % 500 + 3

    def llm_prompt(self):
        model, prompt = self.llm()
        return Work([model], lambda: Decoder(model, LLM, ROOM, self.fused).read(prompt))

    def llm_token(self):
        model, prompt = self.llm()
        decoder = Decoder(model, LLM, ROOM, self.fused)
        last = decoder.read(prompt)

        def run():
            nonlocal last
            last = decoder.read(last.argmax(-1))
            return last

        return Work([model], run)

    def train_small(self):
        unet = self.unet(SMALL_UNET)
        x, target = self.normal(8, 4, 16, 8, 8), self.normal(8, 4, 16, 8, 8)
        context, t = self.normal(8, 125, 64), torch.full([8], 500)
        return Work([unet], training([unet], lambda: F.mse_loss(unet(x, t, context), target)))

    def train_mid(self):
        """The first stage of the paper: everything is trained except the vision tower."""
        visual = self.vision(MID)
        tokenizer = self.made(lambda: fixture.Tokenizer(MID["tok"]))
        perceiver = self.perceiver(MID["proj"])
        self.compile(tokenizer, perceiver)
        unet = self.unet(MID["unet"])
        visual.requires_grad_(False)
        video = torch.rand(5, 3, 256, 256) * 2 - 1
        z0, eps, t = self.normal(1, 4, 16, 16, 16), self.normal(1, 4, 16, 16, 16), torch.tensor([500])
        bar = torch.tensor(fixture.noise_schedule()[1], dtype=self.dtype)[t].view(-1, 1, 1, 1, 1)

        def loss():
            z_t = bar.sqrt() * z0 + (1 - bar).sqrt() * eps
            v = bar.sqrt() * eps - (1 - bar).sqrt() * z0
            with torch.no_grad():
                patches = self.patches(visual, video)
            context = perceiver(tokenizer(patches)[1])
            return (unet(z_t, t, context) - v).square().mean()

        learning = [tokenizer, perceiver, unet]
        return Work([visual, *learning], training(learning, loss))

    def small_tokenizer(self):
        """The networks, and the tokens of clips [clips, 16, 3, height, width] in bytes."""
        visual, tokenizer = self.vision(SMALL), self.made(lambda: Tokenizer(SMALL["tok"]))
        self.compile(tokenizer)
        visual.requires_grad_(False)

        def tokens(clips):
            with torch.no_grad():
                patches = self.patches(visual, signed(clips[:, SEEN]).flatten(0, 1))
            return tokenizer(patches.unflatten(0, (len(clips), -1)))

        return visual, tokenizer, tokens

    def train_stage1(self):
        """The recipe stage1 at small size: two times four clips, clipped gradients, AdamW, a moving average."""
        visual, tokenizer, tokens = self.small_tokenizer()
        perceiver = self.perceiver(SMALL["proj"])
        unet, vae = self.unet(SMALL["unet"]), self.made(lambda: fixture.make_vae(SMALL["vae"]))
        if not self.fused:
            vae.set_attn_processor(AttnProcessor())
        self.compile(perceiver, vae.encoder)
        vae.requires_grad_(False)
        videos = torch.randint(256, (8, 16, 3, 64, 64), dtype=torch.uint8)
        bars = torch.tensor(fixture.noise_schedule()[1], dtype=torch.float32)

        def loss(clips):
            with torch.no_grad():
                latents = vae.encode(signed(clips).flatten(0, 1)).latent_dist.sample() * fixture.VAE_SCALE
            z0 = latents.unflatten(0, (len(clips), -1)).transpose(1, 2)
            eps, t = torch.randn_like(z0), torch.randint(1000, (len(clips),))
            bar = bars[t].view(-1, 1, 1, 1, 1)
            z_t = bar.sqrt() * z0 + (1 - bar).sqrt() * eps
            v = bar.sqrt() * eps - (1 - bar).sqrt() * z0
            return (unet(z_t, t, perceiver(tokens(clips))) - v).square().mean()

        step = Learning([tokenizer, perceiver, unet], average=0.999).step
        losses = [lambda clips=clips: loss(clips) / 2 for clips in videos.split(4)]
        return Work([visual, tokenizer, perceiver, unet, vae], lambda: step(losses))

    def train_llm(self):
        """The recipe pretrain with LoRA: a step of eight clips described, and one of eight captions' clips."""
        visual, tokenizer, tokens = self.small_tokenizer()
        tokenizer.requires_grad_(False)
        gmm = {"num_components": 16, "dim": SMALL["tok"]["resampler_dim"]}
        agent = self.made(lambda: language.Language({"gmm": gmm}, SMALL_LLM))
        for layer in agent.llm.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, projection in list(part.named_children()):
                    setattr(part, name, LoraLinear(projection))
                if self.fused and hasattr(part, "q_proj"):
                    part.forward = functools.partial(causal_attention, part)
        self.compile(*agent.llm.model.layers)

        clip, text, one = [0] * 64, [0] * CAPTION, [0]
        words = torch.randint(3, 400, (8, 70 + CAPTION))
        videos = torch.randint(256, (8, 16, 3, 64, 64), dtype=torch.uint8)

        def row(*parts):
            return torch.tensor([value for mark, ids in parts for value in [mark] * len(ids)]).expand(8, -1)

        def batch(order):
            """Columns of a row's parts: label, attention, read from a clip, written to a clip."""
            columns = [row(*((marks[i], ids) for ids, *marks in order)) for i in range(4)]
            labels = torch.where(columns[0].bool(), words, language.IGNORED)
            names = ["attention_mask", "ids_cmp_mask", "ids_gen_mask"]
            return {"input_ids": words, "labels": labels} | dict(zip(names, columns[1:]))

        read = batch(
            [(one * 3, 0, 1, 0, 0), (clip, 0, 1, 1, 0), (one * 2, 0, 1, 0, 0), (text + one, 1, 1, 0, 0)]
        )
        write = batch(
            [(one + text, 0, 1, 0, 0), (one, 1, 1, 0, 0), (one, 0, 1, 0, 0), (clip, 0, -1, 0, 1)]
            + [(one, 0, 1, 0, 0), (one * 2, 1, 1, 0, 0)]
        )
        used, unused = torch.ones(8, 1), torch.zeros(8, 1)
        read |= {"embeds_cmp_mask": used, "embeds_gen_mask": unused}
        write |= {"embeds_cmp_mask": unused, "embeds_gen_mask": used}

        def loss(batch):
            with torch.no_grad():
                features = tokens(videos)
            return sum(agent.losses(batch | {"video_embeds": features[:, None]}))

        step = Learning([agent]).step
        return Work([visual, tokenizer, agent], lambda: sum(step([lambda: loss(b)]) for b in (read, write)))

    WORKS = {
        "tokenizer": tokenizer,
        "unet": forward,
        "vae-encode": vae_encode,
        "vae-decode": vae_decode,
        "guided-step": guided_step,
        "llm-prompt": llm_prompt,
        "llm-token": llm_token,
        "train-small": train_small,
        "train-mid": train_mid,
        "train-stage1": train_stage1,
        "train-llm": train_llm,
    }


def training(modules, loss_of):
    parameters = [p for module in modules for p in module.train().parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)

    @torch.enable_grad()
    def run():
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


class Learning:
    """AdamW with the settings of divot-train's recipes: decay on weights of linear layers and convolutions, clipped
    gradients, and a moving average if asked for."""

    def __init__(self, modules, average=None):
        parts = [part for module in modules for part in module.train().modules()]
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        layers = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
        decayed = {part.weight for part in parts if isinstance(part, layers)}
        groups = [
            {"params": [p for p in self.parameters if p in decayed], "weight_decay": 0.05},
            {"params": [p for p in self.parameters if p not in decayed], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
        self.decay = average
        self.average = [p.detach().clone() for p in self.parameters] if average else []

    @torch.enable_grad()
    def step(self, losses):
        self.optimizer.zero_grad()
        total = 0.0
        for loss_of in losses:
            loss = loss_of()
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        if self.average:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, 1 - self.decay)
        return total


class Tokenizer(fixture.Tokenizer):
    """From the ViT's patch tokens of many clips [clips, frames, patches, dim] to their video tokens."""

    def forward(self, patches):
        clips, frames = patches.shape[:2]
        temporal = self.temporal_encoder(patches.transpose(1, 2).flatten(0, 1).contiguous())
        grid = temporal.unflatten(0, (clips, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        grid = grid.unflatten(-1, (int(grid.shape[-1] ** 0.5), -1))
        pooled = F.adaptive_avg_pool2d(grid, self.pool_size).flatten(2).transpose(1, 2)
        return self.image_proj_model(self.norm(pooled).unflatten(0, (clips, frames)).flatten(1, 2))


class LoraLinear(torch.nn.Module):
    """A frozen linear layer with low-rank adaptation."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = torch.nn.Linear(base.in_features, LORA["rank"], bias=False)
        self.b = torch.nn.Linear(LORA["rank"], base.out_features, bias=False)
        torch.nn.init.zeros_(self.b.weight)
        self.dropout = torch.nn.Dropout(LORA["dropout"])

    def forward(self, x):
        return self.base(x) + self.b(self.a(self.dropout(x))) * (LORA["alpha"] / LORA["rank"])


def causal_attention(layer, x, sees):
    """The decoder's attention by scaled_dot_product_attention."""
    q, k, v = (
        projection(x).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    q, k = language.rotate(q, layer.theta), language.rotate(k, layer.theta)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=sees, enable_gqa=True)
    return layer.o_proj(out.transpose(1, 2).flatten(-2))


def signed(frames):
    return frames.float() / 127.5 - 1


def fused_attend(q, k, v, heads, scale_apart=False):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def self_attention(layer, x, *_, **__):
    """Computes nn.MultiheadAttention, about twice as fast on the CPU here: that module swaps batch and tokens
    first, and the product of such a tensor with the weights becomes a small product for each token."""
    q, k, v = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    return layer.out_proj(fused_attend(q, k, v, layer.num_heads)), None


class Decoder:
    """A fixture's Mistral with a key-value cache, for causal text no longer than its window."""

    def __init__(self, model, config, room, fused=False):
        self.model, self.fused, self.length = model, fused, 0
        heads = config["num_key_value_heads"]
        d = config["hidden_size"] // config["num_attention_heads"]
        dtype = model.lm_head.weight.dtype
        self.cache = [torch.empty(2, 1, heads, room, d, dtype=dtype) for _ in model.model.layers]
        angles = torch.arange(room)[:, None] * config["rope_theta"] ** (-torch.arange(0, d, 2) / d)
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def read(self, ids):
        """Computes the scores of the next token, [1, 1, vocabulary], from [1, tokens]."""
        x = self.model.embed(ids)
        span = slice(self.length, self.length + ids.shape[1])
        for layer, cache in zip(self.model.model.layers, self.cache):
            x = x + self.attention(layer.self_attn, layer.input_layernorm(x), cache, span)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        self.length = span.stop
        return self.model.lm_head(self.model.model.norm(x[:, -1:]))

    def rotate(self, x, span):
        cos, sin = self.cos[span], self.sin[span]
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def attention(self, layer, x, cache, span):
        q, k, v = (
            projection(x).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
            for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        q = self.rotate(q, span)
        cache[0, :, :, span], cache[1, :, :, span] = self.rotate(k, span), v
        k, v = cache[:, :, :, : span.stop]
        tokens = x.shape[1]
        mask = torch.ones(tokens, span.stop, dtype=torch.bool).tril(span.start) if tokens > 1 else None
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        else:
            # The query heads of a group become rows of one product with the keys that they share.
            scores = q.unflatten(1, (-1, layer.sharing)).flatten(2, 3) @ k.transpose(-1, -2) * layer.head_dim**-0.5
            scores = scores.unflatten(2, (layer.sharing, tokens))
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
            out = (weights.flatten(2, 3) @ v).unflatten(2, (layer.sharing, tokens)).flatten(1, 2)
        return layer.o_proj(out.transpose(1, 2).flatten(-2))


def peak_bytes(device):
    """Returns the peak memory of the process, or the memory that PyTorch reserved on the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved()
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def serve(args):
    cuda = args.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no CUDA device; use --device cpu")
    torch.set_num_threads(args.threads)
    peer = Peer(args.device, args.dtype, args.attention, args.compile)

    def timed(run):
        started = time.perf_counter()
        with torch.inference_mode(not args.serve.startswith("train-")):
            total = float(run().float().sum())
        if cuda:
            torch.cuda.synchronize()
        if total != total:
            raise RuntimeError("the result is NaN")
        return time.perf_counter() - started

    with torch.inference_mode(not args.serve.startswith("train-")):
        work = Peer.WORKS[args.serve](peer)
    timed(work.warm_up or work.run)
    name = torch.cuda.get_device_name() if cuda else "cpu"
    say(
        ready=True,
        parameters=sum(p.numel() for module in work.modules for p in module.parameters()),
        device=f"PyTorch {torch.__version__} on {name}",
        threads=torch.get_num_threads(),
    )
    for line in sys.stdin:
        if line.strip() == "run":
            say(seconds=timed(work.run))
        elif line.strip() == "peak":
            say(peak_bytes=peak_bytes(args.device))


@torch.no_grad()
def self_check():
    torch.manual_seed(0)
    worst = 0.0

    def compare(ours, theirs):
        nonlocal worst
        worst = max(worst, fixture.error(ours, theirs))

    q, k, v = (torch.randn(2, n, 48) for n in (7, 9, 9))
    for apart in (False, True):
        compare(fused_attend(q, k, v, 4, apart), fixture.attend(q, k, v, 4, apart))

    block, x = torch.nn.MultiheadAttention(48, 4, batch_first=True), torch.randn(3, 7, 48)
    torch.nn.init.normal_(block.in_proj_bias)
    compare(self_attention(block, x)[0], block(x, x, x, need_weights=False)[0])

    small = LLM | {"vocab_size": 50, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
    small |= {"num_attention_heads": 6, "num_key_value_heads": 2}
    for fused in (False, True):
        peer = Peer("cpu", "f32", "eager", False)
        model = peer.made(lambda: language.Mistral(small))
        decoder, ids = Decoder(model, small, 32, fused), torch.randint(50, (1, 14))
        for end in (9, 10, 11, 14):
            scores = decoder.read(ids[:, decoder.length : end])
            compare(scores, model.lm_head(model(model.embed(ids[:, :end]))[:, -1:]))
    print(f"attention and cached decoder: {worst:.1e} off")
    return worst < 1e-5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--serve", choices=Peer.WORKS, metavar="WORK")
    what.add_argument("--self-check", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attention", choices=["eager", "fused"], default="eager")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    if args.self_check:
        sys.exit(0 if self_check() else 1)
    try:
        serve(args)
    except Exception as problem:
        lines = str(problem).strip().splitlines() or [""]
        say(error=f"{type(problem).__name__}: {lines[0]}")
        sys.exit(1)


if __name__ == "__main__":
    main()
