//! `divot data story`

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use divot::annotate::{Annotator, SCENES, Storyline};
use divot::data::{Video, atomically};
use divot::endpoint::{Endpoint, Summary};
use divot::{GenerationConfig, Pipeline};
use serde::Serialize;
use serde_json::json;

use super::captions::{Answers, Clip, QUESTION, Writer, all_of, describe};
use super::film::{self, Cutter, Cutting, Film};
use crate::endpoint::{EndpointOptions, is_stopped};
use crate::files::{check_folder, not_written};
use crate::options::{AskOptions, DEFAULT_MODEL};
use crate::output::{Output, plural};

/// Make stories to train on from films
///
/// Films are cut into clips where the shot changes. A model's CLIP joins neighbouring shots that are alike. Each clip
/// gets a caption, and each three consecutive clips an instruction and a storyline, by the language model of an
/// endpoint or by our own. Ctrl-C or a crash loses little: the same command goes on.
///
/// The folder gets stories.jsonl, which recipes read as the format story, captions.jsonl, and clips/. Both lists are
/// written anew, from the films that are named.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot data story episode-1.mp4 episode-2.mp4 --output stories --language-model gpt-4o \\
      --about \"Curious George, an animated series about a monkey\" --input-price 2.5 --output-price 10
  divot data story film.mp4 --output stories --model models/divot --detector adaptive
  divot train examples/recipes/story.toml --set data.0.source.path=stories/stories.jsonl"
)]
pub struct Arguments {
    /// Films
    #[arg(required = true, value_name = "VIDEO")]
    videos: Vec<PathBuf>,
    /// The folder to write into
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// What the films are and who is in them, for the endpoint: frames do not say names
    #[arg(long, value_name = "TEXT")]
    about: Option<String>,
    /// Clips from the beginning of a story to that of the next: 3 uses each clip once, 1 as often as it can
    #[arg(long, value_name = "CLIPS", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    stride: u8,
    #[command(flatten)]
    cutting: Cutting,
    #[command(flatten)]
    endpoint: EndpointOptions,
    #[command(flatten)]
    options: AskOptions,
}

/// A line of the format `story`.
#[derive(Serialize)]
struct Line<'a> {
    instruction: &'a str,
    scenes: Vec<Scene<'a>>,
    ending: &'a str,
}

#[derive(Serialize)]
struct Scene<'a> {
    video: &'a str,
    text: &'a str,
}

/// A line of the format `captions`.
#[derive(Serialize)]
struct Captioned<'a> {
    video: &'a str,
    caption: &'a str,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        self.make(output).map_err(|error| match is_stopped(&error) {
            true => anyhow!(
                "{}: stopped; the same command goes on",
                self.output.display()
            ),
            false => error,
        })
    }

    fn make(&self, output: &mut Output) -> Result<()> {
        let endpoint = self.endpoint.endpoint()?;
        let config = self.options.generation()?;
        let names = self.names()?;
        check_folder(&self.output)?;
        let model = self.options.pipeline_if_any(output)?;
        match (&endpoint, &model) {
            (Some(_), _) => {}
            (None, Some(model)) => model.check_describe(QUESTION, &config)?,
            (None, None) => bail!(
                "nothing writes captions: name a --language-model of an endpoint, or a --model with one (`divot download llm-comprehension`)"
            ),
        }
        let films = self.cut(&names, model.as_ref(), output)?;
        let all: usize = films.iter().map(|film| film.clips.len()).sum();
        let groups = self.groups(&films);
        if groups.is_empty() {
            bail!(
                "{}: no film has three clips in a row; a lower --threshold or --min-clip gives more",
                self.output.display()
            );
        }
        let clips: Vec<Clip> = films
            .iter()
            .flat_map(|film| &film.clips)
            .map(|clip| Clip {
                path: self.output.join(&clip.video),
                seconds: clip.seconds(),
            })
            .collect();
        let told = match (&endpoint, &model) {
            (Some(endpoint), _) => self.by_endpoint(endpoint, &films, &clips, &groups, output)?,
            (None, Some(model)) => {
                Some(self.by_model(model, &config, &films, &clips, &groups, output)?)
            }
            (None, None) => None,
        };
        let Some(stories) = told else {
            return Ok(());
        };
        let path = self.output.join("stories.jsonl");
        output.line(format!(
            "{}, {}, {} → {}",
            plural(films.len(), "film"),
            plural(all, "clip"),
            match stories {
                1 => "1 story".to_owned(),
                stories => format!("{stories} stories"),
            },
            path.display()
        ))?;
        self.tell_small(&films, output)?;
        output.set("output", self.output.to_string_lossy());
        output.set("clips", all);
        output.set("stories", stories);
        Ok(())
    }

    /// The names of the films' clips.
    fn names(&self) -> Result<Vec<String>> {
        let mut names: BTreeMap<String, &Path> = BTreeMap::new();
        for path in &self.videos {
            if let Some(other) = names.insert(film::name(path), path) {
                bail!(
                    "{} and {}: have one name, by which clips are called; rename one, or give each an --output of its own",
                    other.display(),
                    path.display()
                );
            }
        }
        Ok(self.videos.iter().map(|path| film::name(path)).collect())
    }

    /// Cuts the films that can be read.
    fn cut(
        &self,
        names: &[String],
        model: Option<&Pipeline>,
        output: &mut Output,
    ) -> Result<Vec<Film>> {
        let device = match model {
            Some(model) => model.device().clone(),
            None => self.options.device()?,
        };
        let mut cutter = Cutter::new(&self.cutting, &self.output, model, &device)?;
        if model.is_none() {
            output.remark(format!(
                "neighbouring shots are not joined: there is no model at {DEFAULT_MODEL} whose CLIP could compare them"
            ));
        }
        fs::create_dir_all(&self.output).with_context(|| not_written(&self.output))?;
        let (mut films, mut unreadable) = (Vec::new(), Vec::new());
        for (path, name) in self.videos.iter().zip(names) {
            match cutter.film(path, name, output)? {
                Ok(film) => {
                    output.line(film::line(&film))?;
                    films.push(film);
                }
                Err(error) => {
                    let line = divot::one_line(&error);
                    output.note(format!("left out: {line}"));
                    unreadable.push(json!({ "video": path.to_string_lossy(), "problem": line }));
                }
            }
        }
        let count = unreadable.len();
        output.set("unreadable", unreadable);
        let listed = films.iter().map(
            |film| json!({ "video": film.video, "shots": film.shots, "clips": film.clips.len() }),
        );
        output.set("films", listed.collect::<Vec<_>>());
        match films.is_empty() {
            true => bail!("none of {} can be read", plural(count, "video")),
            false => Ok(films),
        }
    }

    /// The clips of each story, numbered through all films.
    fn groups(&self, films: &[Film]) -> Vec<[usize; SCENES]> {
        let mut groups = Vec::new();
        let mut first = 0;
        for film in films {
            let end = first + film.clips.len();
            let starts = (first..(end + 1).saturating_sub(SCENES)).step_by(self.stride.into());
            groups.extend(starts.map(|start| std::array::from_fn(|scene| start + scene)));
            first = end;
        }
        groups
    }

    /// Writes captions and stories by an endpoint. Returns how many stories there are, or `None` if only the cost was
    /// asked for.
    fn by_endpoint(
        &self,
        endpoint: &Endpoint,
        films: &[Film],
        clips: &[Clip],
        groups: &[[usize; SCENES]],
        output: &mut Output,
    ) -> Result<Option<usize>> {
        let mut writer = Writer {
            endpoint,
            cache: self.endpoint.cache(&self.output.join("answers.jsonl"))?,
            annotator: Annotator {
                about: self.about.clone(),
                thinking: self.endpoint.thinking(),
            },
            spent: Summary::default(),
        };
        let expected = writer.estimate(clips, groups)?;
        let what = format!(
            "{} and {} by {}",
            plural(clips.len(), "caption"),
            plural(groups.len(), "storyline"),
            endpoint.model()
        );
        self.endpoint.tell(&what, &expected, output);
        if self.endpoint.is_dry_run() {
            return Ok(None);
        }
        let captions = output.timed("captions", |_| writer.captions(clips))?;
        captions.check_any("caption")?;
        tell_failures("caption", &captions, output);
        self.write_captions(films, &captions.found)?;
        let groups = captioned(films, groups, &captions.found);
        let texts: Vec<_> = groups
            .iter()
            .map(|(_, captions)| captions.clone())
            .collect();
        let stories = output.timed("storylines", |_| writer.stories(&texts))?;
        stories.check_any("storyline")?;
        tell_failures("storyline", &stories, output);
        self.endpoint.tell_spent(&writer.spent, output);
        let told = groups.into_iter().zip(stories.found);
        let told = told.filter_map(|((videos, _), story)| Some((videos, story?)));
        self.write_stories(&told.collect::<Vec<_>>()).map(Some)
    }

    /// Writes captions and stories by our own model. Returns how many stories there are.
    fn by_model(
        &self,
        model: &Pipeline,
        config: &GenerationConfig,
        films: &[Film],
        clips: &[Clip],
        groups: &[[usize; SCENES]],
        output: &mut Output,
    ) -> Result<usize> {
        output.remark(format!(
            "captions by {}: unlike a large model behind an endpoint, it knows no names and tells no story, so that each text is the caption of its clip, and each instruction repeats the first",
            model.name()
        ));
        let captions = describe(model, config, clips, output)?;
        tell_failures("caption", &captions, output);
        self.write_captions(films, &captions.found)?;
        let groups = captioned(films, groups, &captions.found).into_iter();
        let told = groups.map(|(videos, captions)| (videos, Storyline::of_captions(&captions)));
        self.write_stories(&told.collect::<Vec<_>>())
    }

    fn write_captions(&self, films: &[Film], captions: &[Option<String>]) -> Result<()> {
        let videos = films
            .iter()
            .flat_map(|film| &film.clips)
            .map(|clip| &clip.video);
        let lines = videos.zip(captions).filter_map(|(video, caption)| {
            let caption = caption.as_deref()?;
            Some(Captioned { video, caption })
        });
        self.write_lines("captions.jsonl", lines).map(drop)
    }

    fn write_stories(&self, stories: &[([&str; SCENES], Storyline)]) -> Result<usize> {
        let lines = stories.iter().map(|(videos, story)| Line {
            instruction: &story.instruction,
            scenes: videos
                .iter()
                .zip(&story.scenes)
                .map(|(video, text)| Scene { video, text })
                .collect(),
            ending: &story.ending,
        });
        self.write_lines("stories.jsonl", lines)
    }

    /// Writes a file of JSON lines as a whole. Returns how many there are.
    fn write_lines(
        &self,
        name: &str,
        lines: impl Iterator<Item = impl Serialize>,
    ) -> Result<usize> {
        let mut count = 0;
        atomically(&self.output.join(name), |file| {
            for line in lines {
                serde_json::to_writer(&mut *file, &line)?;
                file.write_all(b"\n")?;
                count += 1;
            }
            Ok(())
        })?;
        Ok(count)
    }

    /// Says if training would leave the clips out for their size.
    fn tell_small(&self, films: &[Film], output: &Output) -> Result<()> {
        /// The fewest pixels of the shorter side that a source takes by default.
        const LEAST: usize = 100;
        let mut least = usize::MAX;
        // Those of one film have one size.
        for clip in films.iter().filter_map(|film| film.clips.first()) {
            let video = Video::open(self.output.join(&clip.video))?;
            least = least.min(video.info().width.min(video.info().height));
        }
        if least < LEAST {
            output.remark(format!(
                "the shorter side of the clips has {least} pixels: a source of them needs filter = {{ min_side = {least} }}"
            ));
        }
        Ok(())
    }
}

/// The videos of each story and their captions. A story without all captions is left out.
fn captioned<'a>(
    films: &'a [Film],
    groups: &[[usize; SCENES]],
    captions: &[Option<String>],
) -> Vec<([&'a str; SCENES], [String; SCENES])> {
    let clips = films.iter().flat_map(|film| &film.clips);
    let videos: Vec<&str> = clips.map(|clip| clip.video.as_str()).collect();
    let told = groups.iter().filter_map(|group| {
        let texts = all_of(group, captions)?;
        Some((group.map(|clip| videos[clip]), texts))
    });
    told.collect()
}

fn tell_failures<T>(what: &str, answers: &Answers<T>, output: &mut Output) {
    if let Some(reason) = &answers.first_failure {
        output.note(format!(
            "{} missing, the first for {reason}; the same command asks again",
            plural(answers.failed, what)
        ));
    }
    output.set(&format!("missing_{what}s"), answers.failed);
}
