//! The synthetic world: what it makes is what it says, and the oracle reads it.

mod files;
mod oracle;
mod samples;
mod texts;

use divot_data::world::{Split, World};

fn world(split: Split) -> World {
    World {
        split,
        ..World::default()
    }
}
