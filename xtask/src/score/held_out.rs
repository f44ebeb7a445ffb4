//! Clips of the world that no training saw.

use anyhow::Result;
use divot_data::world::{Scene, Split, Story, World};
use divot_data::{Clip, Frame};

/// The splits, in the order of tables.
pub const SPLITS: [Split; 2] = [Split::TestSeen, Split::TestNovel];

/// The number of a clip, or of a story, of a test split.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOut {
    /// The world that it is of.
    pub world: World,
    /// Its number there.
    pub number: u64,
}

/// So many of them, of frames of `side` pixels. Half are of each split; the first split has one more where the count is
/// odd.
pub fn held_out(count: usize, side: usize) -> Result<Vec<HeldOut>> {
    let counts = [count.div_ceil(2), count / 2];
    let mut all = Vec::with_capacity(count);
    for (split, count) in SPLITS.into_iter().zip(counts) {
        let world = World {
            split,
            size: side,
            ..World::default()
        };
        world.check()?;
        all.extend((0..count as u64).map(|number| HeldOut {
            world: world.clone(),
            number,
        }));
    }
    Ok(all)
}

impl HeldOut {
    /// The ground truth.
    pub fn scene(&self) -> Scene {
        self.world.scene(self.number)
    }

    /// The ground truth of the story of this number.
    pub fn story(&self) -> Story {
        self.world.story(self.number)
    }

    /// The frames.
    pub fn frames(&self) -> Vec<Frame> {
        self.scene().frames(self.world.size, self.world.frames)
    }

    /// The clip, as the tokenizer reads it.
    pub fn clip(&self) -> Result<Clip> {
        Ok(Clip::new(self.frames())?)
    }

    /// The place of its split in [`SPLITS`].
    pub fn split(&self) -> usize {
        usize::from(self.world.split == Split::TestNovel)
    }

    /// What sheets call it, such as "test-seen 7".
    pub fn name(&self) -> String {
        format!("{} {}", self.world.split.name(), self.number)
    }
}
