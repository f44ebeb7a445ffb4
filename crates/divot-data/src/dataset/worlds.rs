//! Samples of the world, made when they are read.

use super::config::{Format, SourceConfig};
use super::sample::{Medium, Reason, Sample, Skip, Text};
use crate::sampling::CLIP_FRAMES;
use crate::world::{Asking, World};
use crate::{Clip, ClipReader, Frame, Result};

/// A source of samples that are made.
#[derive(Debug)]
pub(super) struct Made {
    world: World,
    name: String,
    format: Format,
    text: bool,
    count: usize,
    sparse: Vec<usize>,
}

impl Made {
    /// The world of a source, if it has one, with clips as `reader` would cut them.
    pub fn new(config: &SourceConfig, reader: &ClipReader) -> Result<Option<Self>> {
        let Some(settings) = &config.world else {
            return Ok(None);
        };
        let world = World {
            seed: settings.seed,
            split: settings.split,
            textures: settings.textures,
            plain: settings.plain,
            size: reader.transform.size,
            frames: CLIP_FRAMES,
            ..World::default()
        };
        world.check()?;
        Ok(Some(Self {
            world,
            name: config.name(),
            format: config.format,
            text: config.text,
            count: settings.count,
            sparse: reader.sparse.clone(),
        }))
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// Makes a sample. The clips are a function of its number; how they are put into words is drawn.
    pub fn read(&self, index: usize, uniform: &mut dyn FnMut() -> f64) -> Result<Sample, Skip> {
        let key = format!("{}: {index}", self.name);
        let number = index as u64;
        let frames = match self.format {
            Format::Story => self.story(number),
            Format::Texts => Vec::new(),
            _ => vec![self.clip(number)],
        };
        let clips = frames
            .into_iter()
            .map(|frames| Clip::with_sparse(frames, self.sparse.clone()));
        let clips = clips.collect::<Result<_>>().map_err(|error| Skip {
            key: key.clone(),
            reason: Reason::Malformed,
            message: error.to_string(),
        })?;
        let text = match self.text {
            true => self.text(number, (uniform() * (1u64 << 32) as f64) as u64),
            false => Text::None,
        };
        Ok(Sample {
            key,
            medium: Medium::Video,
            clips,
            text,
            stored: None,
        })
    }

    fn clip(&self, number: u64) -> Vec<Frame> {
        let content = self.world.content(number);
        content.frames(self.world.size, self.world.frames)
    }

    fn story(&self, number: u64) -> Vec<Vec<Frame>> {
        let scenes = self.world.story(number).scenes.into_iter();
        scenes
            .map(|scene| scene.frames(self.world.size, self.world.frames))
            .collect()
    }

    fn text(&self, number: u64, wording: u64) -> Text {
        match self.format {
            Format::Story => self.world.worded_story(number, wording),
            Format::Questions => {
                Text::Turns(self.world.worded_questions(number, Asking::Any, wording))
            }
            Format::Texts => Text::Plain(self.world.worded_text(number, wording)),
            Format::Captions => Text::Caption(self.world.worded_caption(number, wording)),
            _ => Text::None,
        }
    }
}
