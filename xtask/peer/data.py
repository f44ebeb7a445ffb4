#!/usr/bin/env python3
"""PyTorch's side of `cargo xtask bench --only data --peer`: clips read by decord in a DataLoader.

    data.py --serve videos|shards|images --folder DIR --size N [--workers N] [--batch N] [--batches N] [--reader decord|av]

The work is that of divot_data::dataset: of a video, two seconds from anywhere, 16 frames at 8 fps, the shorter side
resized to N by an antialiased bilinear filter, the centre cropped, bytes `[16, 3, N, N]`, and the five of them that the
tokenizer sees. A picture is a clip of 16 equal frames. The protocol is that of peer.py. The line `look` is answered
with means of parts of the frames of two samples, by which the caller sees that both sides do the same.

The first batch of a run is not timed: the workers are started for it. They may have read a part of the next batches by
then.
"""

import argparse
import io
import itertools
import json
import random
import sys
import tarfile
import time
from pathlib import Path

# Libraries may print to standard output, which must not mix with the answers.
ANSWERS, sys.stdout = sys.stdout, sys.stderr


def say(**message):
    print(json.dumps(message), file=ANSWERS, flush=True)


try:
    import numpy
    import torch
    import torch.nn.functional as F
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
except ImportError as problem:
    say(error=f"{problem}; install torch and pillow, or name another Python with --python")
    sys.exit(1)

FRAMES, FPS, SPARSE = 16, 8, [0, 4, 8, 12, 15]


def clip_indices(count, fps, draw):
    """Frames of two seconds from anywhere in a video; `draw` is in [0, 1)."""
    span = FRAMES * fps / FPS
    start = draw * max(count - span, 0)
    step = (min(start + span, count) - start) / FRAMES
    return [min(int(start + i * step), count - 1) for i in range(FRAMES)]


def decord_frames(video, draw):
    # One thread for each worker: there are as many workers as processors.
    reader = decord.VideoReader(video, num_threads=1)
    return reader.get_batch(clip_indices(len(reader), reader.get_avg_fps(), draw))


def av_frames(video, draw):
    with av.open(video) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        indices = clip_indices(stream.frames, float(stream.average_rate), draw)
        frame_time = 1 / (stream.average_rate * stream.time_base)
        begin = stream.start_time or 0
        container.seek(begin + int(indices[0] * frame_time), stream=stream, backward=True)
        wanted, found = set(indices), {}
        for frame in container.decode(stream):
            index = round((frame.pts - begin) / frame_time)
            if index in wanted:
                found[index] = frame.to_ndarray(format="rgb24")
            if index >= indices[-1]:
                break
        return torch.from_numpy(numpy.stack([found[index] for index in indices]))


def cut(frames, size):
    """Resizes and crops bytes `[frames, height, width, 3]` to `[frames, 3, size, size]`."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    resized = F.interpolate(
        frames.permute(0, 3, 1, 2),
        (size * height // short, size * width // short),
        mode="bilinear",
        antialias=True,
    )
    top, left = (round((side - size) / 2) for side in resized.shape[2:])
    return resized[:, :, top : top + size, left : left + size].contiguous()


def sample(dense):
    return {"dense": dense, "sparse": dense[SPARSE]}


class Reader:
    def __init__(self, args):
        self.size = args.size
        self.frames = {"decord": decord_frames, "av": av_frames}[args.reader]

    def video(self, video, draw):
        return sample(cut(self.frames(video, draw), self.size))

    def picture(self, content):
        picture = torch.from_numpy(numpy.array(Image.open(io.BytesIO(content)).convert("RGB")))
        return sample(cut(picture[None], self.size).expand(FRAMES, -1, -1, -1))


class Videos(Dataset):
    def __init__(self, args):
        self.reader = Reader(args)
        self.paths = sorted(Path(args.folder).glob("*.mp4"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, place):
        draw, index = place
        return self.reader.video(str(self.paths[index]), draw)


class Endless:
    """An order of all samples for each epoch, with a random number for each."""

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __iter__(self):
        draw = random.Random(self.seed)
        while True:
            for index in draw.sample(range(self.count), self.count):
                yield draw.random(), index


def members(shard):
    """The samples of an archive: the files of a name."""
    with tarfile.open(shard, "r:") as archive:
        for key, files in itertools.groupby(archive, lambda file: file.name.partition(".")[0]):
            yield {file.name.partition(".")[2]: archive.extractfile(file).read() for file in files}


class Shards(IterableDataset):
    """Each worker reads archives of its own, in a random order, from beginning to end."""

    def __init__(self, args):
        self.reader = Reader(args)
        self.shards = sorted(Path(args.folder).glob("*.tar"))
        self.seed = 0

    def __len__(self):
        return sum(1 for shard in self.shards for _ in members(shard))

    def read(self, files, draw):
        caption = {"text": files.pop("txt").decode()}
        ((ending, content),) = files.items()
        if ending == "mp4":
            return caption | self.reader.video(io.BytesIO(content), draw)
        return caption | self.reader.picture(content)

    def __iter__(self):
        worker = get_worker_info()
        draw = random.Random(self.seed)
        for epoch in itertools.count():
            shards = draw.sample(self.shards, len(self.shards))
            for shard in shards[worker.id :: worker.num_workers]:
                for files in members(shard):
                    yield self.read(files, draw.random())


class Served:
    def __init__(self, args):
        self.args, self.runs = args, 0
        self.data = (Videos if args.serve == "videos" else Shards)(args)

    def batches(self):
        self.runs += 1
        settings = {"num_workers": self.args.workers, "batch_size": self.args.batch}
        if isinstance(self.data, Videos):
            settings["sampler"] = Endless(len(self.data), self.runs)
        else:
            self.data.seed = self.runs
        return iter(DataLoader(self.data, **settings))

    def run(self, each=lambda: None):
        batches = self.batches()
        next(batches)
        started = time.perf_counter()
        for _ in range(self.args.batches):
            batch = next(batches)
            each()
            shape = self.args.batch, FRAMES, 3, self.args.size, self.args.size
            assert batch["dense"].shape == shape, batch["dense"].shape
        seconds = time.perf_counter() - started
        del batches  # ends the workers
        return seconds

    def peak(self):
        """Memory of this process and its workers, in which shared pages count once, in a run that is not timed."""
        peaks = []
        self.run(lambda: peaks.append(sum(map(proportional, family()))))
        return max(peaks)

    def look(self):
        if isinstance(self.data, Videos):
            samples = [self.data[0.5, index] for index in (0, 3)]
        else:
            found = list(itertools.islice(members(self.data.shards[0]), 4))
            samples = [self.data.read(found[index], 0.5) for index in (0, 3)]
        dense = torch.cat([sample["dense"] for sample in samples]).double()
        return F.adaptive_avg_pool2d(dense, 4).flatten().tolist()


def family():
    """This process and those that it started."""
    children = Path("/proc/self/task").glob("*/children")
    return ["self", *(number for path in children for number in path.read_text().split())]


def proportional(process):
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    return 1024 * int(line.split()[1])


def serve(args):
    served = Served(args)
    served.run()
    say(ready=True, parameters=len(served.data), device=f"torch {torch.__version__}, {args.reader} {VERSION}")
    for line in sys.stdin:
        match line.strip():
            case "run":
                say(seconds=served.run())
            case "peak":
                say(peak_bytes=served.peak())
            case "look":
                say(means=served.look())


def reader(wanted):
    """Imports decord, or PyAV where decord is missing. Returns its name."""
    global decord, av, VERSION
    problems = []
    for name in [wanted] if wanted else ["decord", "av"]:
        try:
            if name == "decord":
                import decord

                decord.bridge.set_bridge("torch")
                VERSION = decord.__version__
            else:
                import av

                VERSION = av.__version__
            return name
        except ImportError as problem:
            problems.append(str(problem))
    say(error=f"{'; '.join(problems)}; install decord or av, or name another Python with --python")
    sys.exit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=["videos", "shards", "images"], required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--reader", choices=["decord", "av"])
    args = parser.parse_args()
    args.reader = reader(args.reader)
    try:
        serve(args)
    except Exception as problem:
        lines = str(problem).strip().splitlines() or [""]
        say(error=f"{type(problem).__name__}: {lines[0]}")
        sys.exit(1)


if __name__ == "__main__":
    main()
