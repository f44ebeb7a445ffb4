//! Captions and storylines of clips.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use divot::annotate::{Annotator, SCENES, Storyline, caption_frames, read_caption};
use divot::checkpoint::{Part, WEIGHTS};
use divot::data::{Video, atomically};
use divot::endpoint::{Asked, Cache, Endpoint, Estimate, Request, Summary, ask, estimate, known};
use divot::pipeline::Event;
use divot::weights::Weights;
use divot::{GenerationConfig, Pipeline, Task};
use serde::{Deserialize, Serialize};

use super::Pace;
use crate::interrupt;
use crate::output::Output;

/// What our own model is asked.
pub const QUESTION: &str = "What does this video describe?";
/// Characters of the longest caption that an estimate reckons with.
const LONG_CAPTION: usize = 800;

/// A clip to be captioned.
pub struct Clip {
    pub path: PathBuf,
    pub seconds: f64,
}

/// What came of asking for many things.
pub struct Answers<T> {
    /// What there is for each job.
    pub found: Vec<Option<T>>,
    /// How many there are nothing for, and why for the first.
    pub failed: usize,
    pub first_failure: Option<String>,
}

impl<T> Answers<T> {
    fn none(count: usize) -> Self {
        Self {
            found: std::iter::repeat_with(|| None).take(count).collect(),
            failed: 0,
            first_failure: None,
        }
    }

    /// # Errors
    /// If everything failed: then nothing is to be written over what was there.
    pub fn check_any(&self, what: &str) -> Result<()> {
        match &self.first_failure {
            Some(reason) if self.found.iter().all(Option::is_none) => {
                bail!("no {what} was written, the first for {reason}")
            }
            _ => Ok(()),
        }
    }
}

/// A language model behind an endpoint that writes captions and storylines.
pub struct Writer<'a> {
    pub endpoint: &'a Endpoint,
    pub cache: Cache,
    pub annotator: Annotator,
    /// What all requests together needed.
    pub spent: Summary,
}

impl Writer<'_> {
    /// Estimates captions of clips, and storylines of groups of them. Captions that are not there yet are taken to
    /// be long.
    pub fn estimate(&self, clips: &[Clip], groups: &[[usize; SCENES]]) -> Result<Estimate> {
        let mut captions = Vec::new();
        let mut failed = None;
        let mut pace = Pace::new();
        let requests = clips.iter().map_while(|clip| {
            pace.show(|| format!("{}/{} clips to be captioned", captions.len(), clips.len()));
            let request = self.caption(clip, &mut captions);
            request.map_err(|error| failed = Some(error)).ok()
        });
        let expected = estimate(self.endpoint, &self.cache, requests, read_caption);
        pace.finish();
        if let Some(error) = failed {
            return Err(error);
        }
        let mut expected = expected?;
        let told = groups.iter().filter_map(|group| all_of(group, &captions));
        let told = told.map(|captions| self.annotator.story(&captions));
        let told = estimate(self.endpoint, &self.cache, told, Storyline::read)?;
        expected.add(&told);
        let long = std::array::from_fn(|_| "x".repeat(LONG_CAPTION));
        let long = [self.annotator.story(&long)];
        let long = estimate(self.endpoint, &self.cache, long, Storyline::read)?;
        for _ in groups
            .iter()
            .filter(|group| all_of(group, &captions).is_none())
        {
            expected.add(&long);
        }
        Ok(expected)
    }

    /// Writes captions.
    pub fn captions(&mut self, clips: &[Clip]) -> Result<Answers<String>> {
        let annotator = self.annotator.clone();
        self.ask(
            clips.len(),
            "captions",
            |index| caption(&annotator, &clips[index]),
            read_caption,
        )
    }

    /// Writes storylines for the captions of consecutive clips.
    pub fn stories(&mut self, groups: &[[String; SCENES]]) -> Result<Answers<Storyline>> {
        let annotator = self.annotator.clone();
        self.ask(
            groups.len(),
            "stories",
            |index| Ok(annotator.story(&groups[index])),
            Storyline::read,
        )
    }

    /// Returns the request for a clip's caption, and adds the caption to `captions` if it was written before.
    fn caption(&self, clip: &Clip, captions: &mut Vec<Option<String>>) -> Result<Request> {
        interrupt::check()?;
        let request = caption(&self.annotator, clip)?;
        captions.push(known(self.endpoint, &self.cache, &request, read_caption)?);
        Ok(request)
    }

    fn ask<T>(
        &mut self,
        count: usize,
        what: &str,
        request: impl Fn(usize) -> Result<Request>,
        read: impl Fn(&divot::endpoint::Answer) -> Result<T, String>,
    ) -> Result<Answers<T>> {
        let mut answers = Answers::none(count);
        let (mut pace, mut done) = (Pace::new(), 0);
        let spent = ask::<_, _, anyhow::Error>(
            self.endpoint,
            &mut self.cache,
            0..count,
            |&index| request(index),
            read,
            |event| {
                if let Asked::Done { job, result } = event {
                    done += 1;
                    match result {
                        Ok((value, _)) => answers.found[job] = Some(value),
                        Err(failure) => {
                            answers.failed += 1;
                            answers.first_failure.get_or_insert(failure.to_string());
                        }
                    }
                }
                pace.show(|| format!("{done}/{count} {what}"));
                interrupt::flow()
            },
        );
        pace.finish();
        self.spent.add(&spent?);
        Ok(answers)
    }
}

/// Returns the captions of a group of clips, if all are there.
pub fn all_of(group: &[usize; SCENES], captions: &[Option<String>]) -> Option<[String; SCENES]> {
    let found: Vec<String> = group
        .iter()
        .map_while(|&clip| captions[clip].clone())
        .collect();
    found.try_into().ok()
}

/// Asks for a clip's caption, from eight of its frames.
fn caption(annotator: &Annotator, clip: &Clip) -> Result<Request> {
    let video = Video::open(&clip.path)?;
    let frames = video.frames(&caption_frames(video.info().frames))?;
    Ok(annotator.caption(&frames, clip.seconds)?)
}

/// A caption by our own model, in a file beside the clip.
#[derive(Serialize, Deserialize)]
struct Described {
    caption: String,
    /// What it was made by.
    by: String,
}

/// Captions clips by our own model. Each caption is kept beside its clip, so that the work can go on.
pub fn describe(
    model: &Pipeline,
    config: &GenerationConfig,
    clips: &[Clip],
    output: &mut Output,
) -> Result<Answers<String>> {
    let mut answers = Answers::none(clips.len());
    let by = format!(
        "{}: {config:?}, {:?}, {}",
        model.name(),
        model.precision(),
        edition(model)?
    );
    for (clip, found) in clips.iter().zip(&mut answers.found) {
        *found = described(&beside(&clip.path), &by);
    }
    let left: Vec<usize> = (0..clips.len())
        .filter(|&index| answers.found[index].is_none())
        .collect();
    let paths: Vec<&Path> = left
        .iter()
        .map(|&index| clips[index].path.as_path())
        .collect();
    let mut failed = None;
    let mut pace = Pace::new();
    let made = model.describe_each(
        &paths,
        QUESTION,
        config,
        &mut |event| match event {
            Event::Text(_) => interrupt::flow(),
            event => output.observe(event),
        },
        &mut |index, answer| {
            pace.show(|| format!("{}/{} captions", index + 1, left.len()));
            let caption = answer.text.split_whitespace().collect::<Vec<_>>().join(" ");
            if caption.is_empty() {
                answers.failed += 1;
                let reason = format!("{}: the model says nothing", paths[index].display());
                answers.first_failure.get_or_insert(reason);
                return interrupt::flow();
            }
            let kept = Described {
                caption,
                by: by.clone(),
            };
            match keep(&beside(paths[index]), &kept) {
                Ok(()) => {
                    answers.found[left[index]] = Some(kept.caption);
                    interrupt::flow()
                }
                Err(error) => {
                    failed = Some(error);
                    std::ops::ControlFlow::Break(())
                }
            }
        },
    );
    pace.finish();
    if let Some(error) = failed {
        return Err(error);
    }
    made?;
    Ok(answers)
}

/// Returns what changes when the model in a folder is replaced: fingerprints of what it watches and writes with.
fn edition(model: &Pipeline) -> Result<String> {
    let folder = model.folder();
    let mut edition = Vec::new();
    for part in [Part::Tokenizer, Task::Comprehension.part(folder)?] {
        let weights = Weights::open(&part.folder(folder).join(WEIGHTS))?;
        edition.push(format!("{:016x}", weights.fingerprint(&[])?));
    }
    Ok(edition.join(" "))
}

fn beside(clip: &Path) -> PathBuf {
    clip.with_extension("json")
}

fn described(path: &Path, by: &str) -> Option<String> {
    let described: Described = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (described.by == by).then_some(described.caption)
}

fn keep(path: &Path, described: &Described) -> Result<()> {
    let text = serde_json::to_string(described)? + "\n";
    Ok(atomically(path, |file| file.write_all(text.as_bytes()))?)
}
