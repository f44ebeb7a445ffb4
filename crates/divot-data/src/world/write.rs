//! A world as files, in the formats that training reads.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::json;

use super::{Asking, Content, World};
use crate::dataset::{Text, Turn};
use crate::write::atomically;
use crate::{Error, Result, write_mp4};

/// How much of a world is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Clips with captions and questions.
    pub clips: u64,
    /// Stories, of three clips each.
    pub stories: u64,
}

/// The file that is written last.
const TRUTH: &str = "truth.jsonl";

/// Writes a world into a folder: the first clips in `clips/`, with `captions.jsonl` and `questions.jsonl`; the clips of
/// the first stories in `stories/`, with `stories.jsonl`; and `truth.jsonl` with the ground truth of each.
///
/// The videos are as [`write_mp4`] makes them. The same world gives the same bytes. `each` is told after each clip how
/// many are done, and how many there will be; it may stop the writing, and then a later call begins anew.
///
/// # Errors
/// [`Error::Argument`] for a world that makes no sense or a folder that holds one, and [`Error::Write`] where
/// something cannot be written.
pub fn write(
    world: &World,
    folder: impl AsRef<Path>,
    counts: Counts,
    mut each: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let folder = folder.as_ref();
    world.check()?;
    if folder.join(TRUTH).exists() {
        return Err(Error::Argument(format!(
            "{}: holds a world already; name another folder",
            folder.display()
        )));
    }
    for folder in [folder.join("clips"), folder.join("stories")] {
        fs::create_dir_all(&folder).map_err(|error| Error::write(&folder, error))?;
    }
    let total = counts.clips + 3 * counts.stories;
    let mut files = Files::default();
    let mut done = 0;
    let mut clip = |name: &str, content: &Content, truth: &mut String| {
        let frames = content.frames(world.size, world.frames);
        write_mp4(folder.join(name), &frames, world.fps)?;
        line(truth, json!({"video": name, "truth": content}));
        done += 1;
        Ok::<_, Error>(each(done, total))
    };
    for index in 0..counts.clips {
        let name = format!("clips/{index:06}.mp4");
        let content = world.content(index);
        if clip(&name, &content, &mut files.truth)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let caption = world.caption(index);
        line(
            &mut files.captions,
            json!({"video": name, "caption": caption}),
        );
        if let Content::Sprites(_) = content {
            let turns = world.questions(index, Asking::Any).into_iter();
            let (questions, answers): (Vec<_>, Vec<_>) = turns
                .map(|Turn { question, answer }| (question, answer))
                .unzip();
            let asked = json!({"video": name, "questions": questions, "answers": answers});
            line(&mut files.questions, asked);
        }
    }
    for index in 0..counts.stories {
        let story = world.story(index);
        let mut names = Vec::new();
        for (number, scene) in story.scenes.into_iter().enumerate() {
            let name = format!("stories/{index:06}-{}.mp4", number + 1);
            let content = Content::Sprites(scene);
            if clip(&name, &content, &mut files.truth)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            names.push(name);
        }
        if let Text::Story {
            instruction,
            scenes,
            ending,
        } = world.story_text(index)
        {
            let scenes = names.iter().zip(scenes);
            let scenes =
                scenes.map(|(name, text)| json!({"video": name, "start": 0.0, "text": text}));
            let scenes: Vec<_> = scenes.collect();
            let told = json!({"instruction": instruction, "scenes": scenes, "ending": ending});
            line(&mut files.stories, told);
        }
    }
    files.save(folder)?;
    Ok(ControlFlow::Continue(()))
}

/// What the lists say.
#[derive(Default)]
struct Files {
    captions: String,
    questions: String,
    stories: String,
    truth: String,
}

impl Files {
    fn save(&self, folder: &Path) -> Result<()> {
        let lists = [
            ("captions.jsonl", &self.captions),
            ("questions.jsonl", &self.questions),
            ("stories.jsonl", &self.stories),
            (TRUTH, &self.truth),
        ];
        for (name, lines) in lists {
            atomically(&folder.join(name), |file| file.write_all(lines.as_bytes()))?;
        }
        Ok(())
    }
}

fn line(lines: &mut String, value: serde_json::Value) {
    lines.push_str(&value.to_string());
    lines.push('\n');
}
