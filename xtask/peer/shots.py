#!/usr/bin/env python3
"""PySceneDetect's side of the tests of divot_data::shots.

    shots.py crates/divot-data/tests/data [--videos DIR] [--real DIR]

Needs `pip install scenedetect==0.7.2 opencv-python-headless numpy`.

Without options, it writes shots.json: clips of frames made by a formula, with PySceneDetect's scores and cuts. The test
makes the same frames by the same formula. It also writes what the videos of shot_videos.json show, and keeps their cuts.

With --videos, PySceneDetect reads the videos that the test made of it, and their scores and cuts are written as well:

    DIVOT_SHOT_VIDEOS=DIR cargo test --release -p divot-data --test shots
    shots.py crates/divot-data/tests/data --videos DIR

--real does the same for other videos, of which shot_videos.json has only the names.
"""

import argparse
import json
import sys
from fractions import Fraction
from pathlib import Path

try:
    import numpy
    import scenedetect
    from scenedetect import AdaptiveDetector, ContentDetector, SceneManager, StatsManager, VideoStream, open_video
    from scenedetect.common import FrameTimecode, Timecode
    from scenedetect.detector import FlashFilter
except ImportError as problem:
    sys.exit(f"{problem}; pip install scenedetect==0.7.2 opencv-python-headless numpy")

VERSION = "0.7.2"


# Parts of a clip. A scene is a pattern in colours. `pan` moves it by pixels a frame, `gain` (256 is 1) and `lift` go
# from the first number to the second over the part, and `into` dissolves it into another scene.
def part(scene, frames, pan=(0, 0), gain=(256, 256), lift=(0, 0), into=None):
    return dict(scene=scene, frames=frames, pan=pan, gain=gain, lift=lift, into=into)


def flash(scene, frames):
    return part(scene, frames, lift=(220, 220))


def black(frames):
    return part(0, frames, gain=(0, 0))


def scene(number, x, y, c):
    soft = (x * (3 + number % 4) + y * (5 - number % 3)) >> 3
    blocks = ((x >> 4) ^ (y >> 4)) * (7 + c * (number % 5))
    return (number * (53 + 37 * c) + 40 * c + (soft & 63) + (blocks & 31)) & 255


def picture(width, height, part, i):
    y, x, c = numpy.indices((height, width, 3))
    x, y = x + part["pan"][0] * i, y + part["pan"][1] * i
    value = scene(part["scene"], x, y, c)
    n = part["frames"]
    if part["into"] is not None:
        weight = 256 * i // n
        value = (value * (256 - weight) + scene(part["into"], x, y, c) * weight) >> 8
    gain, lift = (a + (b - a) * i // n for a, b in (part["gain"], part["lift"]))
    return numpy.clip((value * gain >> 8) + lift, 0, 255).astype(numpy.uint8)


def frames(clip):
    for part in clip["parts"]:
        for i in range(part["frames"]):
            yield picture(clip["width"], clip["height"], part, i)


def times(clip):
    """Microseconds of each frame and of the end. `pace` is the lengths of frames in turn, of uneven videos."""
    at = 0
    for i in range(sum(part["frames"] for part in clip["parts"]) + 1):
        yield at if clip["pace"] else round(i * 1e6 / clip["fps"])
        if clip["pace"]:
            at += clip["pace"][i % len(clip["pace"])]


class Made(VideoStream):
    """The frames of a clip as PySceneDetect reads them."""

    def __init__(self, clip):
        super().__init__()
        self.clip, self.source, self.times, self.number = clip, frames(clip), list(times(clip)), 0

    def read(self, decode=True):
        frame = next(self.source, None)
        if frame is None:
            return False
        self.number += 1
        return numpy.ascontiguousarray(frame[..., ::-1])

    frame_rate = property(lambda self: Fraction(self.clip["fps"]))
    frame_size = property(lambda self: (self.clip["width"], self.clip["height"]))
    frame_number = property(lambda self: self.number)
    position_ms = property(lambda self: self.times[max(self.number - 1, 0)] / 1000)
    path = name = property(lambda self: self.clip["name"])
    duration, is_seekable, aspect_ratio = None, False, 1.0

    @property
    def position(self):
        timecode = Timecode(pts=self.times[max(self.number - 1, 0)], time_base=Fraction(1, 1000000))
        return FrameTimecode(timecode, self.frame_rate)

    def reset(self):
        raise NotImplementedError

    seek = reset


def content(**settings):
    return dict(detector="content", **settings)


def adaptive(**settings):
    return dict(detector="adaptive", **settings)


# A whole `min_scene_len` is in frames, another number in seconds. Weights are of hue, saturation and value.
DETECTORS = [
    content(),
    content(filter_mode="suppress"),
    content(min_scene_len=5),
    content(min_scene_len=0, threshold=20.0),
    content(min_scene_len=3, threshold=12.0),
    content(min_scene_len=0.5, threshold=15.0),
    content(weights=[0.0, 0.0, 1.0], threshold=20.0),
    content(weights=[2.0, 0.5, 0.0], filter_mode="suppress", min_scene_len=0.25),
    adaptive(),
    adaptive(adaptive_threshold=1.5, min_scene_len=4, min_content_val=5.0),
    adaptive(window_width=1, adaptive_threshold=2.0, min_scene_len=0.3),
    adaptive(window_width=1, adaptive_threshold=1.1, min_content_val=2.0, min_scene_len=0),
    adaptive(window_width=4, min_content_val=8.0, weights=[1.0, 0.0, 3.0], min_scene_len=0),
]


def detector(settings):
    settings = dict(settings)
    kind = {"content": ContentDetector, "adaptive": AdaptiveDetector}[settings.pop("detector")]
    if "filter_mode" in settings:
        settings["filter_mode"] = FlashFilter.Mode[settings["filter_mode"].upper()]
    if "weights" in settings:
        settings["weights"] = ContentDetector.Components(*settings["weights"], 0.0)
    return kind(**settings)


class Recorder(ContentDetector):
    """Keeps the time and the score of each frame."""

    def __init__(self):
        super().__init__()
        self.times, self.scores = [], []

    def process_frame(self, timecode, frame_img):
        cuts = super().process_frame(timecode, frame_img)
        self.times.append(timecode)
        self.scores.append(float(self._frame_score))
        return cuts


def detect(video, detector):
    manager = SceneManager()
    manager.add_detector(detector)
    manager.detect_scenes(video)
    return manager.get_cut_list(show_warning=False)


def measure(open_one):
    """Scores, and the cuts of each detector as numbers of frames."""
    recorder = Recorder()
    detect(open_one(), recorder)
    number = {(t.pts, t.time_base): i for i, t in enumerate(recorder.times)}
    assert len(number) == len(recorder.times), "two frames at the same time"
    cuts = [detect(open_one(), detector(settings)) for settings in DETECTORS]
    return recorder.scores, [[number[t.pts, t.time_base] for t in found] for found in cuts]


def components(clip):
    """Hue, saturation and value of each frame's score."""
    manager = SceneManager(StatsManager())
    manager.add_detector(ContentDetector())
    manager.detect_scenes(Made(clip))
    keys = ["delta_hue", "delta_sat", "delta_lum"]
    found = manager.stats_manager._frame_metrics.values()
    return [[repr(float(m[k])) for k in keys] for m in found if keys[0] in m]


CLIPS = [
    dict(
        name="cuts", width=64, height=48, fps=25, pace=[],
        parts=[part(1, 20), part(2, 18), part(4, 6), part(5, 6), part(7, 20), part(9, 3), part(11, 16), part(12, 2)],
    ),
    dict(
        name="flashes", width=320, height=180, fps=30, pace=[],
        parts=[flash(1, 1), part(1, 20, (1, 0)), flash(1, 2), part(1, 20, (1, 0)), part(3, 16), flash(3, 1), part(3, 4),
               flash(3, 1), part(3, 20), *(part(4 + i, 4) for i in range(5)), part(10, 24)],
    ),
    dict(
        name="fades", width=512, height=288, fps=24, pace=[],
        parts=[part(2, 12, (1, 0)), part(2, 8, gain=(256, 0)), black(3), part(5, 8, gain=(0, 256)), part(5, 10, (3, 1)),
               part(5, 12, into=8), part(8, 8), part(3, 16, (12, 7)), part(6, 8)],
    ),
    dict(
        name="uneven", width=300, height=401, fps=20, pace=[20000, 40000, 30000, 110000],
        parts=[part(3, 20), part(7, 9), part(8, 14, (2, 2)), part(10, 16), flash(10, 1), part(10, 12)],
    ),
]

# Videos that the test writes. Scenes from 100 on are those of divot_data::world, of which only the first frames fit a
# part; they are square. The lossy codec changes all pixels a little.
VIDEOS = [
    dict(name="cuts", width=128, height=96, fps=24, parts=[part(i, 18) for i in (1, 3, 6, 2, 9)]),
    dict(name="world", width=96, height=96, fps=8, parts=[part(100 + i, 16) for i in range(5)]),
    dict(name="textures", width=128, height=128, fps=12, parts=[part(200 + i, 16) for i in range(5)]),
    dict(
        name="fades", width=160, height=120, fps=25,
        parts=[part(4, 20, (1, 0)), part(4, 10, gain=(256, 0)), black(4), part(9, 10, gain=(0, 256)), part(9, 20),
               part(2, 16)],
    ),
    dict(
        name="dissolves", width=128, height=128, fps=24,
        parts=[part(1, 20), part(1, 4, into=6), part(6, 20), part(6, 24, into=3), part(3, 20), part(8, 18)],
    ),
    dict(
        name="flashes", width=192, height=108, fps=30,
        parts=[part(5, 30, (1, 0)), flash(5, 1), part(5, 20, (1, 0)), flash(5, 3), part(5, 25), part(7, 10), flash(7, 2),
               part(7, 25)],
    ),
    dict(
        name="montage", width=128, height=72, fps=24,
        parts=[part(2, 24), *(part(3 + i, 4) for i in range(8)), part(1, 30), part(5, 7), part(4, 20)],
    ),
    dict(name="pans", width=256, height=144, fps=25, parts=[part(6, 20, (1, 0)), part(6, 20, (16, 3)), part(7, 20, (9, 9))]),
    dict(
        name="large", width=640, height=360, fps=30,
        parts=[part(2, 16, (3, 0)), part(8, 16), part(8, 6, gain=(256, 0)), part(1, 16, gain=(0, 256)), part(5, 4)],
    ),
    dict(
        name="upright", width=288, height=512, fps=30,
        parts=[part(9, 18), flash(9, 1), part(9, 4), part(3, 16, lift=(0, 60)), part(103, 8), part(7, 16)],
    ),
]
REAL = ["wine.mp4", "car.mp4"]


def write(path, clips):
    """The detectors and a line for each clip. Scores are texts, because their last bit counts."""
    rows = [",\n  ".join(json.dumps(item) for item in items) for items in (DETECTORS, clips)]
    path.write_text('{"detectors": [\n  %s\n], "clips": [\n  %s\n]}\n' % tuple(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder of shots.json and shot_videos.json")
    parser.add_argument("--videos", type=Path, help="the folder of the videos that the test made")
    parser.add_argument("--real", type=Path, help="the folder of " + " and ".join(REAL))
    arguments = parser.parse_args()
    if scenedetect.__version__ != VERSION:
        sys.exit(f"scenedetect {scenedetect.__version__}, but the tests are of {VERSION}; install that version")

    made = []
    for clip in CLIPS:
        scores, cuts = measure(lambda: Made(clip))
        parts = components(clip) if clip["name"] == "cuts" else []
        made.append(clip | dict(scores=[repr(score) for score in scores], components=parts, cuts=cuts))
    write(arguments.data / "shots.json", made)

    target = arguments.data / "shot_videos.json"
    known = {clip["name"]: clip for clip in json.loads(target.read_text())["clips"]} if target.exists() else {}
    videos = []
    for video in VIDEOS + [dict(name=name) for name in REAL]:
        is_real = "parts" not in video
        folder = arguments.real if is_real else arguments.videos
        if folder is not None:
            path = folder / (video["name"] if is_real else video["name"] + ".mp4")
            scores, cuts = measure(lambda: open_video(str(path)))
            video = video | dict(scores=[f"{score:.4f}" for score in scores], cuts=cuts)
        else:
            before = known.get(video["name"], {})
            video = video | dict(scores=before.get("scores", []), cuts=before.get("cuts", []))
        videos.append(video)
    write(target, videos)
    for clip in made + videos:
        print(clip["name"], clip["cuts"])


if __name__ == "__main__":
    main()
