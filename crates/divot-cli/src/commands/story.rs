//! `divot story`

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use divot::data::Frame;
use divot::language::{LlmError, Prompt};
use divot::{Story, StoryEnd, StoryPart};
use serde_json::json;

use crate::files::{ClipFiles, check_folder, not_written, rows, staging};
use crate::interrupt::Stopped;
use crate::models::decode;
use crate::options::{Diffusion, Features, LlmWeights, Model, Seed, Text};
use crate::output::Output;

/// Tell a story in text and videos
///
/// The language model says something and draws a video, again and again, each with all that came
/// before in mind. It may end the story before the last scene. The text goes to standard output as it
/// comes; the folder gets scene-01.mp4 with its contact sheet scene-01.png and so on, story.md, which
/// is text and pictures to read, and story.json.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Example:
  divot story \"Tell a story of a boy who finds a kite\" --scenes 3 --output kite"
)]
pub struct Arguments {
    /// What the story should be
    instruction: String,
    /// Scenes at most
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    scenes: usize,
    /// Folder to write; a story that it holds is replaced
    #[arg(long, value_name = "DIR", default_value = "story")]
    output: PathBuf,
    #[command(flatten)]
    seed: Seed,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    weights: LlmWeights,
    #[command(flatten)]
    features: Features,
    #[command(flatten)]
    diffusion: Diffusion,
    #[command(flatten)]
    text: Text,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        if self.instruction.trim().is_empty() {
            return Err(LlmError::Empty("instruction").into());
        }
        if self.scenes == 0 {
            bail!("a story of 0 scenes is none; use --scenes 1 or more");
        }
        check_replaceable(&self.output)?;
        let drawing = self.features.drawing(&self.text, &self.seed)?;
        let sampling = self.diffusion.sampling(output)?;
        let models = self.model.open_llm(&self.weights, output)?;
        let part = models.check_generation(&sampling, |text, _| {
            Prompt::instruction(text, &self.instruction)
        })?;

        let unconditional = models.unconditional(&sampling, true, output)?;
        let llm = models.llm(part, output)?;
        let story = output.timed("language model", |output| {
            let told = llm.story(
                &self.instruction,
                self.scenes,
                &drawing,
                |part| match part {
                    StoryPart::Text(text) => output.stream(text),
                    StoryPart::Scene(number, _) => {
                        output.stream(&format!("\n[{}]\n", clip_name(number)))
                    }
                },
            );
            Ok(told?)
        })?;
        drop(llm);
        output.check()?;
        match story.end {
            StoryEnd::Caller => return Err(Stopped.into()),
            StoryEnd::Window => output.remark("it ends there: the model's window is full"),
            StoryEnd::Scenes | StoryEnd::Itself => {}
        }
        if !story.ending.is_empty() {
            output.line("")?;
        }

        let mut clips = Vec::with_capacity(story.scenes.len());
        if !story.scenes.is_empty() {
            let detokenizer = models.detokenizer(true, output)?;
            for scene in &story.scenes {
                clips.push(decode(
                    &detokenizer,
                    scene.features.clone(),
                    unconditional.as_ref(),
                    &sampling,
                    self.seed.seed,
                    output,
                )?);
            }
        }
        write(
            &self.output,
            &self.instruction,
            self.seed.seed,
            &story,
            &clips,
        )?;

        output.set("instruction", &self.instruction);
        output.set("output", self.output.to_string_lossy());
        output.set("scenes", scenes(&story));
        output.set("ending", story.ending.trim());
        output.set("seed", self.seed.seed);
        output.line(format!(
            "{} of {} scenes in {}",
            story.scenes.len(),
            self.scenes,
            self.output.join("story.md").display()
        ))?;
        output.line(output.summary())
    }
}

fn clip_name(scene: usize) -> String {
    format!("scene-{scene:02}.mp4")
}

fn sheet_name(scene: usize) -> String {
    format!("scene-{scene:02}.png")
}

fn is_of_a_story(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let is_scene = |rest: &str| {
        rest.strip_suffix(".mp4")
            .or(rest.strip_suffix(".png"))
            .is_some_and(|number| number.len() >= 2 && number.bytes().all(|b| b.is_ascii_digit()))
    };
    matches!(name, "story.md" | "story.json") || name.strip_prefix("scene-").is_some_and(is_scene)
}

/// Finds out whether a story can be put there.
fn check_replaceable(folder: &Path) -> Result<()> {
    check_folder(folder)?;
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let name = entry.with_context(|| not_written(folder))?.file_name();
        if !is_of_a_story(&name) {
            bail!(
                "{}: holds `{}`, which is not of a story; move it away or choose another --output",
                folder.display(),
                name.display()
            );
        }
    }
    Ok(())
}

/// Writes all files aside, and puts them in place when they are complete.
fn write(
    folder: &Path,
    instruction: &str,
    seed: u64,
    story: &Story,
    clips: &[Vec<Frame>],
) -> Result<()> {
    let aside = staging(folder)?;
    let mut names = Vec::new();
    for (i, frames) in clips.iter().enumerate() {
        let (clip, sheet) = (clip_name(i + 1), sheet_name(i + 1));
        let files = ClipFiles {
            clip: aside.path().join(&clip),
            sheet: aside.path().join(&sheet),
        };
        files.write(frames, &rows(frames))?;
        names.extend([clip, sheet]);
    }
    let text = json!({
        "instruction": instruction,
        "seed": seed,
        "scenes": scenes(story),
        "ending": story.ending.trim(),
    });
    let mut put = || -> io::Result<()> {
        fs::write(
            aside.path().join("story.json"),
            format!("{}\n", serde_json::to_string_pretty(&text)?),
        )?;
        fs::write(aside.path().join("story.md"), page(instruction, story))?;
        names.extend(["story.json", "story.md"].map(str::to_owned));
        fs::create_dir_all(folder)?;
        // Scenes of an older story that was longer.
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if is_of_a_story(&entry.file_name()) {
                fs::remove_file(entry.path())?;
            }
        }
        names
            .iter()
            .try_for_each(|name| fs::rename(aside.path().join(name), folder.join(name)))
    };
    put().with_context(|| not_written(folder))
}

fn scenes(story: &Story) -> Vec<serde_json::Value> {
    let scene = |(i, scene): (usize, &divot::Scene)| {
        json!({
            "text": scene.text,
                "forced": scene.forced,
            "clip": clip_name(i + 1),
            "sheet": sheet_name(i + 1),
        })
    };
    story.scenes.iter().enumerate().map(scene).collect()
}

/// The story to read: text, and contact sheets that link to their clips.
fn page(instruction: &str, story: &Story) -> String {
    let title = instruction.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut page = format!("# {}\n", markdown(&title));
    for (i, scene) in story.scenes.iter().enumerate() {
        let number = i + 1;
        if !scene.text.is_empty() {
            page += &format!("\n{}\n", markdown(&scene.text));
        }
        page += &format!(
            "\n[![Scene {number}]({})]({})\n",
            sheet_name(number),
            clip_name(number)
        );
    }
    let ending = story.ending.trim();
    if !ending.is_empty() {
        page += &format!("\n{}\n", markdown(ending));
    }
    page
}

/// Text as it is: what means something in Markdown is escaped.
fn markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\`*_{}[]<>#|&~".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_story() {
        for name in ["story.md", "story.json", "scene-01.mp4", "scene-123.png"] {
            assert!(is_of_a_story(OsStr::new(name)), "{name}");
        }
        for name in [
            "scene-.mp4",
            "scene-1.mp4",
            "scene-ab.png",
            "notes.md",
            "scene-01.txt",
        ] {
            assert!(!is_of_a_story(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn text_is_no_markup() {
        assert_eq!(markdown("<vid> *a* [b]"), r"\<vid\> \*a\* \[b\]");
    }
}
