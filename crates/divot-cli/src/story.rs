//! The files of a story.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use divot::Story;
use divot::data::{ClipFiles, Frame};
use serde_json::json;

use crate::files::{self, not_written, staging};
use crate::output::rows;

/// Returns the name of a scene's video.
pub(crate) fn clip_name(scene: usize) -> String {
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

/// Checks that a story can be written to a folder. The folder may contain an older story, and nothing else.
///
/// # Errors
/// If the folder contains something else, or cannot be written.
pub fn check_folder(folder: &Path) -> Result<()> {
    files::check_folder(folder)?;
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let name = entry.with_context(|| not_written(folder))?.file_name();
        if !is_of_a_story(&name) {
            bail!(
                "{}: holds `{}`, which is no file of a story; move it away or choose another --output",
                folder.display(),
                name.display()
            );
        }
    }
    Ok(())
}

/// Writes a story: a video and a contact sheet of each scene, `story.md` with text and pictures, and
/// `story.json`. All files are written elsewhere first, and moved to their places when they are complete.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(
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
        // Remove the scenes of a longer older story.
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

/// Returns the scenes for a JSON object.
pub(crate) fn scenes(story: &Story) -> Vec<serde_json::Value> {
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

/// Returns the page to read: text, and contact sheets that link to their clips.
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

/// Escapes characters that have a meaning in Markdown.
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
