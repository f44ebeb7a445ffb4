#!/usr/bin/env python3
"""What TensorBoard reads from a run's event files, compared with the run's other records. Used by hand.

    python3 -m venv VENV && VENV/bin/pip install tensorboard
    VENV/bin/python event_files.py RUN

RUN is the folder of a run that `divot train` made, best one that was killed and resumed: TensorBoard must drop
what was recorded after the checkpoint, as metrics.jsonl and texts.jsonl have. Prints each tag with its number of
points, first and last value, and each difference; the exit status is 1 if there is one.

It is not named after the package, which it would hide from the scripts beside it.
"""

import json
import math
import struct
import sys
from collections import defaultdict
from pathlib import Path

try:
    # The reader of TensorBoard's own pages; `event_accumulator` beside it keeps texts that were purged.
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray
except ImportError as problem:
    sys.exit(f"{problem}; install the PyPI package `tensorboard`")


def single(number):
    """The number as event files have it, in single precision."""
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return math.copysign(math.inf, number)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def recorded_scalars(run):
    series = defaultdict(list)
    for line in lines(run / "metrics.jsonl"):
        step, _ = line.pop("step"), line.pop("seconds")
        for tag, value in line.items():
            series[tag].append((step, single(float(value))))
    return dict(series)


def recorded_texts(run):
    series = defaultdict(list)
    for line in lines(run / "texts.jsonl"):
        series[f"texts/{line['name']}"].append((line["step"], line["text"]))
    return dict(series)


def recorded_images(run):
    """The bytes of each sheet by its step; names in tags may have letters that names of files have not."""
    sheets = defaultdict(list)
    for path in (run / "samples").glob("step-*-*.png"):
        sheets[int(path.name.split("-")[1])].append(path.read_bytes())
    return {step: sorted(images) for step, images in sheets.items()}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run = Path(sys.argv[1])
    for name in ["metrics.jsonl", "texts.jsonl"]:
        if not (run / name).is_file():
            sys.exit(f"{run}: has no {name}; name the folder of a run")
    # 0: every point is kept.
    events = EventAccumulator(str(run), size_guidance={"tensors": 0}).Reload()
    found = defaultdict(dict)
    for tag in events.Tags()["tensors"]:
        plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
        found[plugin][tag] = [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
    differences = 0

    def compare(kind, ours, theirs):
        nonlocal differences
        for tag in sorted(ours.keys() | theirs.keys(), key=str):
            # As text, in which NaN equals NaN.
            equal = repr(ours.get(tag)) == repr(theirs.get(tag))
            differences += not equal
            points = theirs.get(tag, [])
            if kind == "scalar" and points:
                detail = f"step {points[0][0]}: {points[0][1]:.6g} to step {points[-1][0]}: {points[-1][1]:.6g}"
            else:
                detail = ""
            mark = "equal" if equal else f"DIFFERS: {len(ours.get(tag, []))} recorded"
            print(f"{kind:7} {tag!s:40} {len(points):7} points  {mark}  {detail}")

    scalars = {tag: [(step, value.item()) for step, value in points] for tag, points in found.pop("scalars", {}).items()}
    compare("scalar", recorded_scalars(run), scalars)

    texts = {tag: [(step, text.item().decode()) for step, text in points] for tag, points in found.pop("text", {}).items()}
    compare("text", recorded_texts(run), texts)

    images = defaultdict(list)
    for points in found.pop("images", {}).values():
        for step, (width, height, png) in points:
            assert struct.unpack(">II", png[16:24]) == (int(width), int(height)), step
            images[step].append(png)
    compare("sheets", recorded_images(run), {step: sorted(of_step) for step, of_step in images.items()})
    assert not found, found.keys()

    print("no difference" if differences == 0 else f"{differences} differences")
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
