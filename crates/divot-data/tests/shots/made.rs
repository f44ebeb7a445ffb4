//! Clips that a formula makes, here and in `xtask/peer/shots.py`, and what PySceneDetect says of them.

use divot_data::shots::{Adaptive, Content, Detector, Filter, Method, MinLength, Weights};
use divot_data::world::{Split, World};
use divot_data::{Error, Frame};
use serde::Deserialize;
use serde_json::Value;

/// What PySceneDetect says of clips.
#[derive(Deserialize)]
pub struct Reference {
    pub detectors: Vec<Settings>,
    pub clips: Vec<Clip>,
}

/// A clip or a video, and what PySceneDetect says of it.
#[derive(Deserialize)]
pub struct Clip {
    pub name: String,
    #[serde(default)]
    pub width: usize,
    #[serde(default)]
    pub height: usize,
    #[serde(default)]
    pub fps: f64,
    /// Lengths of frames in microseconds, in turn. None in a clip of constant rate.
    #[serde(default)]
    pace: Vec<u64>,
    #[serde(default)]
    pub parts: Vec<Part>,
    /// Score of each frame, as a text, because its last bit counts.
    pub scores: Vec<String>,
    /// Hue, saturation and value of each frame's score but the first. They may be left out.
    #[serde(default)]
    components: Vec<[String; 3]>,
    /// Cuts that each detector finds.
    pub cuts: Vec<Vec<usize>>,
}

/// Frames of one scene, or of two of which one becomes the other.
#[derive(Deserialize)]
pub struct Part {
    scene: u32,
    frames: u32,
    pan: [u32; 2],
    gain: [i32; 2],
    lift: [i32; 2],
    into: Option<u32>,
}

/// A detector with its settings, by PySceneDetect's names. What is not set has the default value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    detector: String,
    threshold: Option<f64>,
    filter_mode: Option<String>,
    min_scene_len: Option<Value>,
    weights: Option<[f64; 3]>,
    adaptive_threshold: Option<f64>,
    min_content_val: Option<f64>,
    window_width: Option<usize>,
}

impl Settings {
    pub fn method(&self) -> Method {
        let min_length = match &self.min_scene_len {
            None => MinLength::default(),
            Some(length) => match length.as_u64() {
                Some(frames) => MinLength::Frames(frames as usize),
                None => MinLength::Seconds(length.as_f64().unwrap()),
            },
        };
        let weights = self
            .weights
            .map_or(Weights::default(), |[hue, saturation, value]| Weights {
                hue,
                saturation,
                value,
            });
        if self.detector == "content" {
            let default = Content::default();
            return Method::Content(Content {
                threshold: self.threshold.unwrap_or(default.threshold),
                min_length,
                weights,
                filter: match self.filter_mode.as_deref() {
                    None => default.filter,
                    Some("suppress") => Filter::Suppress,
                    Some(other) => panic!("no filter {other}"),
                },
            });
        }
        assert_eq!(self.detector, "adaptive");
        let default = Adaptive::default();
        Method::Adaptive(Adaptive {
            ratio: self.adaptive_threshold.unwrap_or(default.ratio),
            min_length,
            window: self.window_width.unwrap_or(default.window),
            min_score: self.min_content_val.unwrap_or(default.min_score),
            weights,
        })
    }
}

impl Clip {
    pub fn count(&self) -> usize {
        self.parts.iter().map(|part| part.frames as usize).sum()
    }

    /// Time of a frame in seconds.
    fn time(&self, frame: usize) -> f64 {
        if self.pace.is_empty() {
            return frame as f64 / self.fps;
        }
        let micros: u64 = self.pace.iter().cycle().take(frame).sum();
        micros as f64 / 1e6
    }

    pub fn frames(&self) -> impl Iterator<Item = Frame> {
        let frames = |part: &'_ Part| -> Vec<Frame> {
            let world = World {
                split: Split::Test,
                ..World::default()
            };
            match part.scene {
                0..100 => (0..part.frames).map(|i| self.picture(part, i)).collect(),
                100..200 => {
                    self.fitted(world.scene(part.scene.into()).frames(self.width, 16), part)
                }
                _ => {
                    let world = World {
                        textures: 1.0,
                        ..world
                    };
                    self.fitted(
                        world.content(part.scene.into()).frames(self.width, 16),
                        part,
                    )
                }
            }
        };
        self.parts.iter().flat_map(frames)
    }

    /// The first frames of a scene of the world, from a square to the height of the clip.
    fn fitted(&self, frames: Vec<Frame>, part: &Part) -> Vec<Frame> {
        let bytes = self.width * self.height * 3;
        frames
            .into_iter()
            .take(part.frames as usize)
            .map(|frame| {
                let rgb = frame.rgb.iter().copied().cycle().take(bytes).collect();
                Frame::new(self.width, self.height, rgb).unwrap()
            })
            .collect()
    }

    fn picture(&self, part: &Part, i: u32) -> Frame {
        let n = part.frames;
        let between = |[a, b]: [i32; 2]| a + ((b - a) * i as i32).div_euclid(n as i32);
        let (gain, lift) = (between(part.gain), between(part.lift));
        let weight = 256 * i / n;
        let mut rgb = Vec::with_capacity(self.width * self.height * 3);
        for y in 0..self.height as u32 {
            for x in 0..self.width as u32 {
                let (x, y) = (x + part.pan[0] * i, y + part.pan[1] * i);
                for c in 0..3 {
                    let mut value = scene(part.scene, x, y, c);
                    if let Some(into) = part.into {
                        value = (value * (256 - weight) + scene(into, x, y, c) * weight) >> 8;
                    }
                    let value = ((value as i32 * gain) >> 8) + lift;
                    rgb.push(value.clamp(0, 255) as u8);
                }
            }
        }
        Frame::new(self.width, self.height, rgb).unwrap()
    }
}

/// A value of a scene: a soft pattern and blocks, in colours.
fn scene(number: u32, x: u32, y: u32, c: u32) -> u32 {
    let soft = (x * (3 + number % 4) + y * (5 - number % 3)) >> 3;
    let blocks = ((x >> 4) ^ (y >> 4)) * (7 + c * (number % 5));
    (number * (53 + 37 * c) + 40 * c + (soft & 63) + (blocks & 31)) & 255
}

#[test]
fn scores_and_cuts_of_the_same_frames_are_equal() {
    let Reference {
        detectors: settings,
        clips,
    } = serde_json::from_str(include_str!("../data/shots.json")).unwrap();
    assert_eq!((settings.len(), clips.len()), (13, 4));
    assert!(clips.iter().any(|clip| !clip.components.is_empty()));
    for clip in &clips {
        assert_eq!(clip.scores.len(), clip.count(), "{}", clip.name);
        let new = settings
            .iter()
            .map(|settings| Detector::new(settings.method(), clip.fps).unwrap());
        let mut detectors: Vec<Detector> = new.collect();
        let mut cuts = vec![Vec::new(); detectors.len()];
        for (i, frame) in clip.frames().enumerate() {
            let time = clip.time(i);
            for (detector, cuts) in detectors.iter_mut().zip(&mut cuts) {
                cuts.extend(detector.push(time, &frame).unwrap());
            }
            let score = detectors[0].score();
            let parse = |text: &String| text.parse::<f64>().unwrap();
            assert_eq!(
                score.total,
                parse(&clip.scores[i]),
                "{}: frame {i}",
                clip.name
            );
            if let Some(parts) = i.checked_sub(1).and_then(|i| clip.components.get(i)) {
                let parts = parts.each_ref().map(parse);
                assert_eq!([score.hue, score.saturation, score.value], parts);
            }
        }
        assert_eq!(cuts.len(), clip.cuts.len());
        for (number, (cuts, expected)) in cuts.iter().zip(&clip.cuts).enumerate() {
            let frames: Vec<usize> = cuts.iter().map(|cut| cut.frame).collect();
            assert_eq!(frames, *expected, "{}: detector {number}", clip.name);
            assert!(cuts.iter().all(|cut| cut.time == clip.time(cut.frame)));
        }
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let content = |change: fn(&mut Content)| {
        let mut settings = Content::default();
        change(&mut settings);
        Method::Content(settings)
    };
    let adaptive = |change: fn(&mut Adaptive)| {
        let mut settings = Adaptive::default();
        change(&mut settings);
        Method::Adaptive(settings)
    };
    for (method, part) in [
        (content(|s| s.threshold = 0.0), "0 is no threshold"),
        (content(|s| s.threshold = f64::NAN), "NaN is no threshold"),
        (
            content(|s| s.min_length = MinLength::Seconds(-1.0)),
            "at least -1 s",
        ),
        (
            content(|s| s.weights.hue = f64::INFINITY),
            "weighted by inf",
        ),
        (
            adaptive(|s| {
                s.weights = Weights {
                    value: 0.0,
                    ..Weights::VALUE_ONLY
                }
            }),
            "not all 0",
        ),
        (adaptive(|s| s.ratio = -1.0), "-1 is no ratio"),
        (adaptive(|s| s.min_score = 0.0), "0 is no lowest score"),
        (adaptive(|s| s.window = 0), "with 0 neighbours"),
        (adaptive(|s| s.window = 1001), "with 1001 neighbours"),
    ] {
        let line = Detector::new(method, 25.0).unwrap_err().to_string();
        assert!(
            line.contains(part) && line.contains("give ") && !line.contains('\n'),
            "{line}"
        );
    }
    for fps in [0.0, f64::NAN, f64::INFINITY] {
        assert!(Detector::new(Content::default(), fps).is_err());
    }
}

#[test]
fn frames_of_another_size_are_refused() {
    let mut detector = Detector::new(Content::default(), 25.0).unwrap();
    let frame = |width| Frame::filled(width, 4, [9; 3]).unwrap();
    detector.push(0.0, &frame(5)).unwrap();
    let error = detector.push(0.04, &frame(6)).unwrap_err();
    assert!(
        matches!(&error, Error::Argument(line) if line.contains("6x4") && line.contains("5x4"))
    );
    // It goes on with frames that fit.
    assert_eq!(detector.push(0.04, &frame(5)).unwrap(), None);
}

#[test]
fn frames_of_any_size_are_compared() {
    for (width, height) in [
        (1, 1),
        (1, 700),
        (700, 1),
        (256, 3),
        (257, 2),
        (512, 3),
        (512, 1),
        (511, 512),
    ] {
        let mut detector = Detector::new(Content::default(), 25.0).unwrap();
        for (i, level) in [10, 250].into_iter().enumerate() {
            let frame = Frame::filled(width, height, [level; 3]).unwrap();
            detector.push(i as f64 / 25.0, &frame).unwrap();
        }
        let score = detector.score();
        assert_eq!(
            (score.hue, score.saturation, score.value),
            (0.0, 0.0, 240.0),
            "{width}x{height}"
        );
        assert_eq!(score.total, 80.0);
    }
}
