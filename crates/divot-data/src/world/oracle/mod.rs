//! Ground truth read off frames.
//!
//! The oracle knows the rules of the world and nothing of the clip but its frames: objects stand out from a nearly grey
//! background by their colour. It is made for blurred and noisy clips too: a colour is decided by all pixels of
//! an object, a shape by the mean of all frames, a motion by the best of a few models of its path.

mod segment;
mod template;
mod track;

use serde::{Deserialize, Serialize};

use self::segment::Chroma;
use self::template::Templates;
use self::track::Track;
use super::scene::{Colour, Motion, Object, Scene, Shape, Size};
use crate::Frame;

/// Reads ground truth off clips. It holds pictures of the shapes to compare with.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    templates: Templates,
}

/// What is seen in a clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// At most two objects, the one of more pixels first.
    pub objects: Vec<Seen>,
}

/// An object that is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its shape.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
    /// Its size halfway.
    pub size: Size,
    /// What it does, or does first.
    pub motion: Motion,
    /// What it does then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Motion>,
}

/// How what is seen compares with the truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether as many objects are seen as there are.
    pub count: bool,
    /// For each object of the truth, what of it is seen.
    pub objects: Vec<Agreement>,
}

/// What of an object is seen as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Agreement {
    /// Its shape.
    pub shape: bool,
    /// Its colour.
    pub colour: bool,
    /// Its size.
    pub size: bool,
    /// What it does, and in which order.
    pub motion: bool,
}

impl Oracle {
    /// Sees what is in a clip.
    ///
    /// Frames are of one size. Of no frames, nothing is seen.
    pub fn read(&self, frames: &[Frame]) -> Reading {
        let chroma = Chroma::of(frames);
        let objects = chroma.colours().into_iter().filter_map(|colour| {
            let masks = chroma.masks(colour);
            let track = Track::of(&masks)?;
            Some(self.object(colour, &masks, &track))
        });
        Reading {
            objects: objects.collect(),
        }
    }

    fn object(&self, colour: Colour, masks: &segment::Masks, track: &Track) -> Seen {
        let (motion, then) = track.motion();
        let upright = self
            .templates
            .best(&template::mean(masks, track, 0.0), false);
        let spinning = match motion {
            Motion::Still => self.templates.spinning(masks, track, upright.likeness),
            _ => None,
        };
        let found = spinning.unwrap_or(upright);
        Seen {
            shape: found.shape,
            colour,
            size: nearest_size(track.radius() * found.scale),
            motion: if spinning.is_some() {
                Motion::Spin
            } else {
                motion
            },
            then,
        }
    }
}

/// The size whose radius is the nearest, by ratio.
fn nearest_size(radius: f32) -> Size {
    let ratio = |size: &Size| (radius / size.radius()).ln().abs();
    let nearest = Size::ALL.into_iter();
    let nearest = nearest.min_by(|a, b| ratio(a).total_cmp(&ratio(b)));
    nearest.unwrap_or(Size::Medium)
}

impl Seen {
    fn agreement(&self, object: &Object) -> Agreement {
        Agreement {
            shape: self.shape == object.shape,
            colour: self.colour == object.colour,
            size: self.size == object.size,
            motion: (self.motion, self.then) == (object.motion, object.then),
        }
    }
}

impl Agreement {
    fn count(self) -> u8 {
        [self.shape, self.colour, self.size, self.motion]
            .map(u8::from)
            .iter()
            .sum()
    }
}

impl Reading {
    /// Compares with the truth. Two objects are matched so that as much as possible agrees; of one that is not seen,
    /// nothing does.
    pub fn verdict(&self, scene: &Scene) -> Verdict {
        let compare = |order: &[usize]| -> Vec<Agreement> {
            let pairs = scene.objects.iter().zip(order);
            let agreements = pairs.map(|(object, &place)| match self.objects.get(place) {
                Some(seen) => seen.agreement(object),
                None => Agreement::default(),
            });
            agreements.collect()
        };
        let total = |agreements: &Vec<Agreement>| {
            agreements
                .iter()
                .map(|agreement| agreement.count())
                .sum::<u8>()
        };
        let (kept, swapped) = (compare(&[0, 1]), compare(&[1, 0]));
        Verdict {
            count: self.objects.len() == scene.objects.len(),
            objects: if total(&swapped) > total(&kept) {
                swapped
            } else {
                kept
            },
        }
    }
}

impl Verdict {
    /// Whether everything agrees.
    pub fn is_right(&self) -> bool {
        self.count && self.objects.iter().all(|agreement| agreement.count() == 4)
    }
}
