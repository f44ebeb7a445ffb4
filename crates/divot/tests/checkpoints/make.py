"""Writes the PyTorch checkpoints beside it, and what PyTorch reads from each as a safetensors file.

Needs torch and numpy: `python make.py`. The checkpoints hold the same few tensors beside all sorts of
objects that no weight needs.
"""

import argparse
import collections
import datetime
import json
import pathlib
import struct
import sys
import types
from functools import partial
from unittest import mock

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.uint16: "U16",
}


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def weights():
    """The tensors that are wanted, in every layout that a storage may have."""
    torch.manual_seed(0)
    whole = torch.randn(6, 4)
    result = collections.OrderedDict()
    result["plain"] = torch.randn(3, 2)
    result["scalar"] = torch.tensor(1.5)
    result["empty"] = torch.empty(0, 3)
    result["transposed"] = whole.t()
    result["rows"] = whole[1:5:2]
    result["column"] = whole[:, 2]
    result["expanded"] = torch.randn(1, 3).expand(4, 3)
    result["parameter"] = torch.nn.Parameter(torch.randn(2, 2))
    for dtype in TYPES:
        result[f"types.{TYPES[dtype]}"] = (torch.arange(6).reshape(2, 3) % 2).to(dtype)
    return result


class Settings:
    """An object of a class that nobody else has."""

    def __init__(self):
        self.rate, self.self = 0.1, self


class Odd(dict):
    pass


# As if it came from a package that is not here.
module = types.ModuleType("somewhere.training")
for item in (Settings, Odd):
    item.__module__ = module.__name__
    setattr(module, item.__name__, item)
sys.modules["somewhere"] = types.ModuleType("somewhere")
sys.modules[module.__name__] = module


def extras():
    """What training leaves in a checkpoint beside the weights."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    nested = {}
    for _ in range(20):
        nested = {"in": nested}
    return {
        "defaultdict": collections.defaultdict(list, a=[1, 2]),
        "nested_defaultdict": collections.defaultdict(partial(collections.defaultdict, int)),
        "deque": collections.deque([1, 2], maxlen=3),
        "counter": collections.Counter("hello"),
        "chain": collections.ChainMap({"a": 1}),
        ("a", 1): "a tuple is the key",
        None: 1,
        True: 2,
        2.5: 3,
        "": 4,
        "odd \n key\0": 5,
        frozenset([1]): 6,
        "optimizer": optimizer,
        "optimizer_state": optimizer.state_dict(),
        "scheduler": scheduler,
        "module": torch.nn.Sequential(layer, torch.nn.Sequential(torch.nn.ReLU())),
        "namespace": argparse.Namespace(a=1),
        "path": pathlib.PurePosixPath("/a"),
        "numpy_scalar": np.float64(1.5),
        "numpy_array": np.arange(3),
        "rng": np.random.RandomState(0).get_state(),
        "random": torch.get_rng_state(),
        "when": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "settings": Settings(),
        "odd": Odd(a=1),
        "big": 1 << 200,
        "negative": -(1 << 40),
        "complex_number": 1 + 2j,
        "bytes": b"abc" * 100,
        "bytearray": bytearray(b"abc"),
        "set": {1, 2},
        "slice": slice(1, 2),
        "range": range(3),
        "nested": nested,
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "complex": torch.ones(3, dtype=torch.complex64),
        "fp8": torch.ones(3).to(torch.float8_e4m3fn),
        "meta": torch.ones(3, device="meta"),
        "nan": float("nan"),
    }


def main():
    wanted = weights()
    write_safetensors(HERE / "expected.safetensors", wanted)
    beside = extras()
    plain = {key: value for key, value in wanted.items()}
    torch.save(wanted, HERE / "plain.pt")
    torch.save({"state_dict": wanted, **beside}, HERE / "training.pt")
    # In the same dictionary as the weights.
    mixed = {**plain, **{k: v for k, v in beside.items() if k not in ("optimizer_state", "nested", "odd")}}
    mixed.pop("defaultdict"), mixed.pop("counter"), mixed.pop("random")
    torch.save(mixed, HERE / "mixed.pt")
    legacy = {"state_dict": wanted, **{k: v for k, v in beside.items() if k not in ("fp8",)}}
    legacy["state_dict"] = collections.OrderedDict(
        (key, value) for key, value in wanted.items() if key != "types.U16"
    )
    # The old format stores the source of every module's class; none of it belongs here.
    with mock.patch("torch.serialization.get_source_lines_and_file", lambda _: ([""], 0, "module.py")):
        torch.save(legacy, HERE / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": wanted, **beside}, HERE / "protocol4.pt", pickle_protocol=4)
    torch.save(torch.nn.Linear(2, 2), HERE / "module.pt")
    torch.save({"plain": torch.eye(3).to_sparse(), "other": torch.ones(2)}, HERE / "needed.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), HERE / "script.pt")
    for name in ("plain", "training", "mixed", "protocol4"):
        loaded = torch.load(HERE / f"{name}.pt", weights_only=False)
        loaded = loaded.get("state_dict", loaded)
        for key, value in wanted.items():
            assert torch.equal(loaded[key], value), (name, key)


main()
