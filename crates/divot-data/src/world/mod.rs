//! A synthetic world to train on: endless clips whose ground truth is known, and an oracle that reads it off any clip.
//!
//! A clip has one or two coloured shapes ([`Scene`]), which move before a nearly grey background, or textures that move
//! over each other ([`Texture`]). Captions, questions and stories are functions of the ground truth.
//!
//! ```
//! use divot_data::world::{Oracle, World};
//!
//! let world = World::default();
//! let scene = world.scene(7);
//! let frames = scene.frames(world.size, world.frames);
//! println!("{}", world.caption(7));
//!
//! let seen = Oracle::default().read(&frames);
//! assert_eq!(seen.objects.len(), scene.objects.len());
//! assert!(seen.verdict(&scene).is_right());
//! ```
//!
//! # Splits
//!
//! A sample is a function of the seed, the split and its number. An eighth of all combinations of colour, shape and
//! motion is never seen in training ([`Object::is_held_out`]); tests may ask for them alone ([`Split`]).
//!
//! # Oracle
//!
//! [`Oracle::read`] finds the objects of any frames and says what they look like and do, by image analysis. It
//! scores reconstructions and generated clips against the truth ([`Reading::verdict`]); [`claims`] does the same for
//! texts.

mod background;
mod caption;
mod claims;
mod compose;
mod draw;
mod oracle;
mod picture;
mod questions;
mod render;
mod scene;
mod shape;
mod story;
mod texture;
mod words;
mod write;

use serde::{Deserialize, Serialize};

use crate::dataset::{Text, Turn};
use crate::sampling::{CLIP_FPS, CLIP_FRAMES};
use crate::{Error, Frame, Result};
use compose::Combinations;
use draw::Draw;
use scene::named;

pub use claims::{Claim, claims, motions};
pub use oracle::{Agreement, Oracle, Reading, Seen, Verdict};
pub use questions::Asking;
pub use scene::{Background, Camera, Colour, Motion, Object, Pattern, Scene, Shape, Size};
pub use story::Story;
pub use texture::{Layer, Material, Texture};
pub use write::{Counts, write};

named! {
    /// Samples that share nothing but the rules of the world.
    Split {
        /// For training. No held-out combination.
        Train = "train",
        /// For choosing among models. No held-out combination.
        Validation = "validation",
        /// For measuring a model. Any combination.
        Test = "test",
        /// Test samples without held-out combinations.
        TestSeen = "test-seen",
        /// Test samples of which each has a held-out combination.
        TestNovel = "test-novel",
    }
}

impl Split {
    fn combinations(self) -> Combinations {
        match self {
            Self::Train | Self::Validation | Self::TestSeen => Combinations::Seen,
            Self::Test => Combinations::Any,
            Self::TestNovel => Combinations::Novel,
        }
    }
}

/// A world: clips by their numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct World {
    /// Seed of everything.
    pub seed: u64,
    /// Which samples these are.
    pub split: Split,
    /// Share of clips that are textures, from 0 to 1. They have a caption, and no questions.
    pub textures: f64,
    /// Share of scenes, from 0 to 1, whose background is made plain. In them, objects are most of what there is to learn.
    pub plain: f64,
    /// Width and height of frames in pixels, 16 to 1024.
    pub size: usize,
    /// Frames of a clip, 2 to 1024.
    pub frames: usize,
    /// Frame rate, in frames per second.
    pub fps: f64,
}

impl Default for World {
    /// Training clips of sprites, 16 frames of 64x64 at 8 frames per second.
    fn default() -> Self {
        Self {
            seed: 0,
            split: Split::Train,
            textures: 0.0,
            plain: 0.0,
            size: 64,
            frames: CLIP_FRAMES,
            fps: CLIP_FPS,
        }
    }
}

/// The ground truth of a clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Objects.
    Sprites(Scene),
    /// Textures.
    Textures(Texture),
}

impl Content {
    /// Draws `count` frames of `side` by `side` pixels.
    pub fn frames(&self, side: usize, count: usize) -> Vec<Frame> {
        match self {
            Self::Sprites(scene) => scene.frames(side, count),
            Self::Textures(texture) => texture.frames(side, count),
        }
    }
}

/// What random numbers are for.
#[derive(Clone, Copy)]
enum Purpose {
    Kind,
    Scene,
    Texture,
    Story,
    Caption,
    Questions,
    Telling,
    Plain,
}

impl World {
    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// [`Error::Argument`] for the first of them.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::Argument(format!("the world: {what}")));
        if !(16..=1024).contains(&self.size) {
            return wrong("frames are 16 to 1024 pixels a side; give such a `size`");
        }
        if !(2..=1024).contains(&self.frames) {
            return wrong("a clip has 2 to 1024 frames; give such a number of `frames`");
        }
        if !(self.fps > 0.0 && self.fps <= 1000.0) {
            return wrong("a frame rate is over 0 and at most 1000; give such an `fps`");
        }
        if !(0.0..=1.0).contains(&self.textures) {
            return wrong("`textures` is a share of clips; give 0 to 1");
        }
        if !(0.0..=1.0).contains(&self.plain) {
            return wrong("`plain` is a share of scenes; give 0 to 1");
        }
        Ok(())
    }

    /// What is in a clip.
    pub fn content(&self, index: u64) -> Content {
        match self.draw(Purpose::Kind, index, 0).chance(self.textures) {
            true => Content::Textures(texture::texture(&mut self.draw(Purpose::Texture, index, 0))),
            false => Content::Sprites(self.scene(index)),
        }
    }

    /// The scene of a number, whatever share textures have.
    pub fn scene(&self, index: u64) -> Scene {
        let draw = &mut self.draw(Purpose::Scene, index, 0);
        let mut scene = compose::scene(self.split.combinations(), draw);
        if self.draw(Purpose::Plain, index, 0).chance(self.plain) {
            scene.background.pattern = Pattern::Plain;
        }
        scene
    }

    /// The story of a number. Its scenes are none of [`scene`](Self::scene).
    pub fn story(&self, index: u64) -> Story {
        let draw = &mut self.draw(Purpose::Story, index, 0);
        story::story(self.split.combinations(), draw)
    }

    /// A caption of [`content`](Self::content).
    pub fn caption(&self, index: u64) -> String {
        self.worded_caption(index, 0)
    }

    /// Questions about [`scene`](Self::scene), each of another kind.
    pub fn questions(&self, index: u64, asking: Asking) -> Vec<Turn> {
        self.worded_questions(index, asking, 0)
    }

    /// The words of [`story`](Self::story).
    pub fn story_text(&self, index: u64) -> Text {
        self.worded_story(index, 0)
    }

    /// A text without a clip: a caption, questions with their answers, or a story.
    pub fn text(&self, index: u64) -> String {
        self.worded_text(index, 0)
    }

    /// A text in other words for another `wording`.
    pub(crate) fn worded_text(&self, index: u64, wording: u64) -> String {
        let text = match index % 3 {
            0 => Text::Caption(self.worded_caption(index, wording)),
            1 => Text::Turns(self.worded_questions(index, Asking::Any, wording)),
            _ => self.worded_story(index, wording),
        };
        let lines: Vec<String> = match text {
            Text::None => Vec::new(),
            Text::Plain(text) | Text::Caption(text) => vec![text],
            Text::Turns(turns) => turns
                .into_iter()
                .map(|turn| format!("{}\n{}", turn.question, turn.answer))
                .collect(),
            Text::Story {
                instruction,
                scenes,
                ending,
            } => instruction
                .into_iter()
                .chain(scenes)
                .chain([ending])
                .collect(),
        };
        lines.join("\n")
    }

    /// A caption in other words for another `wording`.
    pub(crate) fn worded_caption(&self, index: u64, wording: u64) -> String {
        match self.content(index) {
            Content::Sprites(scene) => {
                scene.caption(&mut self.draw(Purpose::Caption, index, wording))
            }
            Content::Textures(texture) => texture.caption(),
        }
    }

    /// Other questions, or in other words, for another `wording`.
    pub(crate) fn worded_questions(&self, index: u64, asking: Asking, wording: u64) -> Vec<Turn> {
        let draw = &mut self.draw(Purpose::Questions, index, wording << 2 | asking as u64);
        self.scene(index).questions(asking, draw)
    }

    /// A story in other words for another `wording`.
    pub(crate) fn worded_story(&self, index: u64, wording: u64) -> Text {
        let draw = &mut self.draw(Purpose::Telling, index, wording);
        self.story(index).text(draw)
    }

    fn draw(&self, purpose: Purpose, index: u64, wording: u64) -> Draw {
        let kind = (self.split as u64) << 8 | purpose as u64;
        Draw::new([self.seed, kind, index, wording])
    }
}
