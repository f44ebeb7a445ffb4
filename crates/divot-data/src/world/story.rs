//! Stories: scenes of one character.

use serde::{Deserialize, Serialize};

use super::compose::{Combinations, motions, scene_of};
use super::draw::Draw;
use super::scene::{Colour, Motion, Scene, Shape};
use super::words::{Form, indefinite, place, sentence};
use crate::dataset::Text;

/// Scenes of a story.
const SCENES: usize = 3;

const NAMES: [&str; 20] = [
    "Ada", "Bobo", "Coco", "Dora", "Emil", "Fay", "Gus", "Ida", "Juno", "Kiki", "Lulu", "Momo",
    "Nina", "Otto", "Pip", "Rio", "Sam", "Tilda", "Uma", "Zoe",
];

/// A story of a character, who has the same shape and colour in each scene.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// What the character is called.
    pub name: String,
    /// The scenes, each a clip, with the character alone.
    pub scenes: Vec<Scene>,
}

/// A story at random.
pub(super) fn story(combinations: Combinations, draw: &mut Draw) -> Story {
    loop {
        let (shape, colour) = (draw.one(&Shape::ALL), draw.one(&Colour::ALL));
        let mut motions = motions(shape, colour, combinations);
        draw.shuffle(&mut motions);
        motions.truncate(SCENES);
        // Nobody vanishes before the end, or comes after the beginning.
        if motions[1..].contains(&Motion::Appear) || motions[..2].contains(&Motion::Vanish) {
            continue;
        }
        let scenes = motions
            .into_iter()
            .map(|motion| scene_of(shape, colour, motion, draw));
        let scenes: Vec<_> = scenes.collect();
        let is_novel = scenes.iter().any(|scene| scene.objects[0].is_held_out());
        if combinations != Combinations::Novel || is_novel {
            let name = draw.one(&NAMES).to_owned();
            return Story { name, scenes };
        }
    }
}

impl Story {
    /// The story in words.
    pub(super) fn text(&self, draw: &mut Draw) -> Text {
        let name = &self.name;
        let object = &self.scenes[0].objects[0];
        let look = format!("{} {}", object.colour.name(), object.shape.name());
        let thing = indefinite(&look);
        let instruction = match draw.below(4) {
            0 => format!("Tell me a story about {thing} named {name}."),
            1 => format!("Tell a story about {name}, {thing}."),
            2 => format!("Can you tell me a story about {name} the {look}?"),
            _ => format!("What happens to {name}, {thing}?"),
        };
        let last = self.scenes.len() - 1;
        let scenes = self.scenes.iter().enumerate().map(|(number, scene)| {
            let mut does = scene.objects[0].motion.say(Form::Third, draw);
            if draw.chance(0.3) {
                does = format!("{does} {}", place(scene.background.pattern, draw));
            }
            if number == 0 {
                return match draw.below(4) {
                    0 => format!("This is {name}, {thing}. {name} {does}."),
                    1 => format!("Once there was {thing} named {name}. {name} {does}."),
                    2 => format!("{name} is {thing}. One day, {name} {does}."),
                    _ => format!("Meet {name}, {thing}. {name} {does}."),
                };
            }
            let when = match number == last {
                true => draw.one(&["in the end,", "at last,", "finally,"]),
                false => draw.one(&["then", "next,", "after that,", "a little later,", "now"]),
            };
            let who = if draw.chance(0.6) { name } else { "it" };
            sentence(&format!("{when} {who} {does}"))
        });
        Text::Story {
            instruction: Some(instruction),
            scenes: scenes.collect(),
            ending: match draw.below(3) {
                0 => "The end.".to_owned(),
                1 => format!("Good night, {name}."),
                _ => format!("That was the story of {name}."),
            },
        }
    }
}
