//! A world as files, in the formats that training reads.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use serde::Serialize;

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

/// The files that are written last, in this order.
const LISTS: [&str; 4] = [
    "captions.jsonl",
    "questions.jsonl",
    "stories.jsonl",
    "truth.jsonl",
];

#[derive(Serialize)]
struct Captioned<'a> {
    video: &'a str,
    caption: String,
}

#[derive(Serialize)]
struct Questioned<'a> {
    video: &'a str,
    questions: Vec<String>,
    answers: Vec<String>,
}

#[derive(Serialize)]
struct Told {
    instruction: Option<String>,
    scenes: Vec<Scene>,
    ending: String,
}

#[derive(Serialize)]
struct Scene {
    video: String,
    start: f32,
    text: String,
}

#[derive(Serialize)]
struct Truth<'a> {
    video: &'a str,
    truth: &'a Content,
}

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
    let mut lists = LISTS.iter().map(|list| folder.join(list));
    if let Some(list) = lists.find(|list| list.exists()) {
        return Err(Error::Argument(format!(
            "{}: is there already, of this world or of other data; name another folder",
            list.display()
        )));
    }
    for folder in [folder.join("clips"), folder.join("stories")] {
        fs::create_dir_all(&folder).map_err(|error| Error::write(&folder, error))?;
    }
    let total = counts.clips + 3 * counts.stories;
    let mut files = Files::default();
    let mut done = 0;
    let mut clip = |video: &str, truth: &Content, lines: &mut String| {
        let frames = truth.frames(world.size, world.frames);
        write_mp4(folder.join(video), &frames, world.fps)?;
        line(lines, &Truth { video, truth });
        done += 1;
        Ok::<_, Error>(each(done, total))
    };
    for index in 0..counts.clips {
        let video = &format!("clips/{index:06}.mp4");
        let content = world.content(index);
        if clip(video, &content, &mut files.truth)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let caption = world.caption(index);
        line(&mut files.captions, &Captioned { video, caption });
        if let Content::Sprites(_) = content {
            let turns = world.questions(index, Asking::Any).into_iter();
            let turns = turns.map(|Turn { question, answer }| (question, answer));
            let (questions, answers) = turns.unzip();
            let asked = Questioned {
                video,
                questions,
                answers,
            };
            line(&mut files.questions, &asked);
        }
    }
    for index in 0..counts.stories {
        let Text::Story {
            instruction,
            scenes: texts,
            ending,
        } = world.story_text(index)
        else {
            continue;
        };
        let mut scenes = Vec::new();
        let told = world.story(index).scenes.into_iter().zip(texts);
        for (number, (scene, text)) in (1..).zip(told) {
            let video = format!("stories/{index:06}-{number}.mp4");
            if clip(&video, &Content::Sprites(scene), &mut files.truth)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            scenes.push(Scene {
                video,
                start: 0.0,
                text,
            });
        }
        let told = Told {
            instruction,
            scenes,
            ending,
        };
        line(&mut files.stories, &told);
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
        let lists = [&self.captions, &self.questions, &self.stories, &self.truth];
        let mut written = Vec::new();
        for (name, lines) in LISTS.into_iter().zip(lists) {
            let list = folder.join(name);
            if let Err(error) = atomically(&list, |file| file.write_all(lines.as_bytes())) {
                // Of half the lists, a later call would not know whose they are.
                for list in written {
                    let _ = fs::remove_file(list);
                }
                return Err(error);
            }
            written.push(list);
        }
        Ok(())
    }
}

fn line(lines: &mut String, value: &impl Serialize) {
    // These values always have a form in JSON.
    *lines += &serde_json::to_string(value).unwrap_or_default();
    lines.push('\n');
}
