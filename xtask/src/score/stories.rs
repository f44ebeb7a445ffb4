//! Stories: whether the character stays who it is, and texts fit their clips.

use anyhow::Result;
use burn::tensor::Tensor;
use divot::{Detokenizer, GenerationConfig, Task};
use divot_data::Frame;
use divot_data::dataset::Text;
use divot_data::world::{Colour, Oracle, Reading, Shape};
use divot_llm::Prompt;

use super::answers::tells;
use super::held_out::{HeldOut, SPLITS, held_out};
use super::networks::flow;
use super::sheets::{Entry, Gallery};
use super::table::{Cell, Table};
use super::tally::Mean;
use super::{Scoring, seed_of};

/// Clips of a story.
const SCENES: usize = 3;

/// A story that the model told.
#[derive(Debug, Default)]
struct Told {
    instruction: String,
    /// What is said before each clip.
    texts: Vec<String>,
    /// The clips.
    clips: Vec<Vec<Frame>>,
}

/// Who a story is about.
struct Character {
    name: String,
    colour: Colour,
    shape: Shape,
}

/// Sums over the stories of a split, with one seed.
#[derive(Debug, Clone, Default)]
struct Sums {
    whole: Mean,
    named: Mean,
    colour: Mean,
    shape: Mean,
    kept: Mean,
    other: Mean,
    told: Mean,
    told_elsewhere: Mean,
}

/// Makes the table.
pub fn tables(scoring: &Scoring) -> Result<Vec<Table>> {
    let part = Detokenizer::adapted_part(scoring.pipeline.folder());
    let count = scoring.clips.div_ceil(SCENES).max(2);
    let stories = held_out(count, scoring.made_side(part)?)?;

    let (llm, name) = scoring.llm(Task::Generation)?;
    let mut progress = scoring.progress("stories", stories.len() * scoring.seeds.len());
    let mut seeds = Vec::new();
    for &seed in &scoring.seeds {
        let (mut all, mut features) = (Vec::new(), Vec::new());
        for (number, story) in stories.iter().enumerate() {
            let instruction = instruction(story);
            let prompt =
                Prompt::instruction(&llm.text, &instruction).map_err(divot::Error::from)?;
            let config = GenerationConfig {
                seed: seed_of(seed, number as u64),
                ..scoring.generation.clone()
            };
            let story = llm.story(&prompt, SCENES, &config, |_| flow())?;
            let mut told = Told {
                instruction,
                ..Told::default()
            };
            for scene in story.scenes {
                told.texts.push(scene.text);
                features.push((number, scene.features));
            }
            all.push(told);
            progress.advance(1)?;
        }
        seeds.push((all, features));
    }
    drop(llm);

    let decoder = scoring.decoder(part)?;
    let mut galleries: [Gallery; 2] = Default::default();
    let mut sums = Vec::new();
    for (&seed, (mut all, features)) in scoring.seeds.iter().zip(seeds) {
        let (owners, features): (Vec<usize>, Vec<Tensor<3>>) = features.into_iter().unzip();
        if !features.is_empty() {
            let name = format!("de-tokenizer with seed {seed}");
            let mut progress = scoring.progress(&name, features.len());
            let features = Tensor::cat(features, 0);
            decoder.decode(&features, seed, &mut progress, |place, made| {
                all[owners[place]].clips.push(made);
                Ok(())
            })?;
        }
        sums.push(score(&scoring.oracle, &stories, &all));
        if seed == scoring.seeds[0] {
            for (story, told) in stories.iter().zip(&all) {
                let quality = quality(&scoring.oracle, story, told);
                galleries[story.split()].add(quality, || Entry {
                    text: format!("{:?} {:?}", told.instruction, told.texts),
                    rows: told.clips.clone(),
                });
            }
        }
    }
    for (split, gallery) in SPLITS.iter().zip(&galleries) {
        let name = format!("stories-{}", split.name());
        gallery.write(scoring.sheets.as_deref(), &name)?;
    }
    Ok(vec![table(&stories, &sums, name, part.name())])
}

/// What the world asks for the story with.
fn instruction(story: &HeldOut) -> String {
    match story.world.story_text(story.number) {
        Text::Story {
            instruction: Some(instruction),
            ..
        } => instruction,
        _ => unreachable!("a story of the world has an instruction"),
    }
}

fn character(story: &HeldOut) -> Character {
    let story = story.story();
    let object = &story.scenes[0].objects[0];
    Character {
        name: story.name,
        colour: object.colour,
        shape: object.shape,
    }
}

/// Whether each of three clips shows one object, of which something is so.
fn in_all(seen: &[Reading], is_so: impl Fn(Colour, Shape) -> bool) -> bool {
    let shows = |seen: &Reading| match &seen.objects[..] {
        [one] => is_so(one.colour, one.shape),
        _ => false,
    };
    seen.len() == SCENES && seen.iter().all(shows)
}

/// Scores stories, of each split. The story of each number was asked for with the instruction of that number.
fn score(oracle: &Oracle, stories: &[HeldOut], told: &[Told]) -> [Sums; 2] {
    let read =
        |told: &Told| -> Vec<Reading> { told.clips.iter().map(|clip| oracle.read(clip)).collect() };
    let seen: Vec<Vec<Reading>> = told.iter().map(read).collect();
    let mut splits: [Sums; 2] = Default::default();
    for (place, (story, told)) in stories.iter().zip(told).enumerate() {
        let next = (place + 1) % stories.len();
        let (hero, other) = (character(story), character(&stories[next]));
        let sums = &mut splits[story.split()];
        let mine = &seen[place];
        sums.whole.note(told.clips.len() == SCENES);
        sums.named
            .note(told.texts.iter().any(|text| text.contains(&hero.name)));
        sums.colour
            .note(in_all(mine, |colour, _| colour == hero.colour));
        sums.shape
            .note(in_all(mine, |_, shape| shape == hero.shape));
        sums.kept.note(in_all(mine, |colour, shape| {
            (colour, shape) == (hero.colour, hero.shape)
        }));
        sums.other.note(in_all(mine, |colour, shape| {
            (colour, shape) == (other.colour, other.shape)
        }));
        // A scene that is missing counts as one that does not fit.
        for scene in 0..SCENES {
            let text = told.texts.get(scene).map_or("", String::as_str);
            let fits = |seen: &[Reading]| seen.get(scene).is_some_and(|seen| tells(text, seen));
            sums.told.note(fits(mine));
            sums.told_elsewhere.note(fits(&seen[next]));
        }
    }
    splits
}

/// What orders stories from the worst: clips that show the character, and texts that fit them.
fn quality(oracle: &Oracle, story: &HeldOut, told: &Told) -> f64 {
    let hero = character(story);
    let scenes = told.texts.iter().zip(&told.clips);
    let scores = scenes.map(|(text, clip)| {
        let seen = oracle.read(clip);
        let is_hero = match &seen.objects[..] {
            [one] => (one.colour, one.shape) == (hero.colour, hero.shape),
            _ => false,
        };
        f64::from(u8::from(is_hero)) + f64::from(u8::from(tells(text, &seen)))
    });
    scores.sum()
}

fn table(stories: &[HeldOut], sums: &[[Sums; 2]], llm: &str, detokenizer: &str) -> Table {
    let mut rows = Vec::new();
    for (place, split) in SPLITS.iter().enumerate() {
        let count = stories
            .iter()
            .filter(|story| story.split() == place)
            .count();
        let share = |of: fn(&Sums) -> Mean| Cell::percent(sums, |splits| of(&splits[place]));
        rows.push(vec![
            split.name().into(),
            count.into(),
            "**their own**".into(),
            share(|sums| sums.whole),
            share(|sums| sums.named),
            share(|sums| sums.colour),
            share(|sums| sums.shape),
            share(|sums| sums.kept),
            share(|sums| sums.told),
        ]);
        rows.push(vec![
            split.name().into(),
            count.into(),
            "another story's".into(),
            Cell::none(),
            Cell::none(),
            Cell::none(),
            Cell::none(),
            share(|sums| sums.other),
            share(|sums| sums.told_elsewhere),
        ]);
    }
    Table {
        title: "Stories",
        note: format!(
            "`{llm}` is asked for a story about a named character of a colour and a shape, and tells three scenes, each a \
             text and a clip, which `{detokenizer}` decodes. Of stories: whether there are three clips, whether a text \
             says the name, and whether each of three clips shows one object alone, with the colour, the shape, and both \
             (kept) of the instruction. Of scenes: whether the text says what the oracle sees the object do, and nothing \
             else of its looks (told); scenes that are missing count as wrong. The second row of a split compares with \
             the instruction and the clips of the next story, which is chance."
        ),
        columns: vec![
            "split", "stories", "against", "3 clips", "named", "colour", "shape", "kept", "told",
        ],
        rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The world's story of a number, as if a model had told it.
    fn truly(story: &HeldOut) -> Told {
        let Text::Story { scenes, .. } = story.world.story_text(story.number) else {
            panic!("a story is one")
        };
        let clips = story.story().scenes;
        let clips = clips
            .iter()
            .map(|it| it.frames(story.world.size, story.world.frames));
        Told {
            instruction: instruction(story),
            texts: scenes,
            clips: clips.collect(),
        }
    }

    #[test]
    fn true_stories_score_high_and_others_do_not() {
        let oracle = Oracle::default();
        let stories = held_out(24, 64).unwrap();
        let told: Vec<Told> = stories.iter().map(truly).collect();
        for sums in score(&oracle, &stories, &told) {
            for share in [sums.whole, sums.named, sums.kept, sums.told] {
                assert!(share.percent() >= 90.0, "{sums:?}");
            }
            assert!(sums.other.percent() <= 20.0, "{sums:?}");
            assert!(sums.told_elsewhere.percent() <= 30.0, "{sums:?}");
        }

        // Each story with another's texts: the character stays, and the texts do not fit.
        let mut mixed: Vec<Told> = stories.iter().map(truly).collect();
        for (story, next) in mixed.iter_mut().zip(told.iter().cycle().skip(1)) {
            story.texts.clone_from(&next.texts);
        }
        for sums in score(&oracle, &stories, &mixed) {
            assert!(sums.kept.percent() >= 90.0, "{sums:?}");
            assert!(sums.told.percent() <= 30.0, "{sums:?}");
        }

        // Stories that end after two clips.
        let mut short: Vec<Told> = stories.iter().map(truly).collect();
        short.iter_mut().for_each(|story| story.clips.truncate(2));
        for sums in score(&oracle, &stories, &short) {
            assert_eq!((sums.whole.percent(), sums.kept.percent()), (0.0, 0.0));
            assert!(sums.told.percent() <= 67.0, "{sums:?}");
        }
        assert!(quality(&oracle, &stories[0], &told[0]) > quality(&oracle, &stories[0], &told[1]));
    }
}
