//! `divot data filter`

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::iter;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use divot::annotate::{Annotator, read_change};
use divot::data::captions::{Reason, judge};
use divot::data::dataset::{CaptionList, CaptionRow, Columns, Skip};
use divot::data::{self, atomically, check_output};
use divot::endpoint::{Asked, Endpoint, ask, estimate};

use super::Pace;
use crate::endpoint::{EndpointOptions, is_stopped};
use crate::interrupt;
use crate::output::{Output, plural};

/// Keep the captions that describe change over time
///
/// Rows whose caption says that something moves, acts or changes are copied byte for byte. A row with several captions
/// is kept if one of them does. English captions are judged by rules, or by a language model if one is named: then
/// answers are kept beside the output, and the same command goes on after an interruption.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot data filter captions.jsonl --output dynamic.jsonl
  divot data filter webvid-*.csv --output dynamic.csv \\
      --endpoint http://localhost:8000/v1 --language-model llama-3-8b --parallel 64"
)]
pub struct Arguments {
    /// Lists of captions that training reads: .jsonl files, or .csv files with one header
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The file for the rows that are kept
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Column of the video in CSV files, if its name is unusual
    #[arg(long, value_name = "NAME", requires = "caption_column")]
    video_column: Option<String>,
    /// Column of the caption in CSV files, if its name is unusual
    #[arg(long, value_name = "NAME", requires = "video_column")]
    caption_column: Option<String>,
    #[command(flatten)]
    endpoint: EndpointOptions,
}

/// What was found of each row, and why.
#[derive(Default)]
struct Judged {
    kept: Vec<bool>,
    /// How many rows were kept for each reason.
    reasons: BTreeMap<String, usize>,
    /// Rows without a caption, and the first of them.
    unusable: usize,
    first_unusable: Option<Skip>,
    /// Rows that the endpoint gave no verdict on, and why the first has none.
    unanswered: usize,
    first_unanswered: Option<String>,
}

impl Judged {
    fn unusable(&mut self, skip: Skip) {
        self.unusable += 1;
        self.first_unusable.get_or_insert(skip);
    }
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let endpoint = self.endpoint.endpoint()?;
        let lists = self.open()?;
        let judged = match &endpoint {
            None => by_rules(&lists)?,
            Some(endpoint) => match self.by_endpoint(endpoint, &lists, output) {
                Ok(Some(judged)) => judged,
                Ok(None) => return Ok(()),
                Err(error) if is_stopped(&error) => bail!(
                    "{}: stopped; the answers so far are kept there, and the same command goes on",
                    self.answers().display()
                ),
                Err(error) => return Err(error),
            },
        };
        self.write(&lists, &judged.kept)?;
        self.tell(&lists, &judged, output)
    }

    /// Opens the lists, and checks that their rows can be in one file.
    fn open(&self) -> Result<Vec<CaptionList>> {
        let columns = match (&self.video_column, &self.caption_column) {
            (Some(video), Some(caption)) => Some(Columns {
                video: video.clone(),
                caption: caption.clone(),
            }),
            _ => None,
        };
        let lists = self
            .files
            .iter()
            .map(|path| CaptionList::open(path, columns.as_ref()))
            .collect::<data::Result<Vec<_>>>()?;
        let kind = |path: &Path| path.extension().map(|it| it.to_ascii_lowercase());
        let first = &self.files[0];
        for path in self.files.iter().chain([&self.output]) {
            if kind(path) != kind(first) {
                bail!(
                    "{}: ends otherwise than {}, and rows are copied as they are; give files of one kind, and --output the same ending",
                    path.display(),
                    first.display()
                );
            }
        }
        let header = lists[0].header()?;
        let names = |header: &[u8]| {
            let plain = header.strip_prefix(b"\xef\xbb\xbf").unwrap_or(header);
            plain.trim_ascii().to_vec()
        };
        for list in &lists[1..] {
            if names(&list.header()?) != names(&header) {
                bail!(
                    "{}: has another header than {}; filter them one by one",
                    list.path().display(),
                    first.display()
                );
            }
        }
        let inputs: Vec<&Path> = self.files.iter().map(PathBuf::as_path).collect();
        check_output(&self.output, &inputs)?;
        Ok(lists)
    }

    fn answers(&self) -> PathBuf {
        let mut name = self.output.as_os_str().to_owned();
        name.push(".answers");
        PathBuf::from(name)
    }

    /// Asks the endpoint about every caption. Returns `None` if only the cost was asked for.
    fn by_endpoint(
        &self,
        endpoint: &Endpoint,
        lists: &[CaptionList],
        output: &mut Output,
    ) -> Result<Option<Judged>> {
        let annotator = Annotator {
            about: None,
            thinking: self.endpoint.thinking(),
        };
        let mut cache = self.endpoint.cache(&self.answers())?;
        let mut judged = Judged::default();
        // Rows of no use are counted in the one pass before, which also says whether all can be read.
        let mut captions_in_all = 0;
        for row in rows(lists) {
            interrupt::check()?;
            judged.kept.push(false);
            match row?.captions {
                Ok(captions) => captions_in_all += captions.len(),
                Err(skip) => judged.unusable(skip),
            }
        }
        let captions = || {
            let rows = rows(lists).map_while(data::Result::ok).enumerate();
            rows.flat_map(|(index, row)| {
                let captions = row.captions.unwrap_or_default();
                captions.into_iter().map(move |caption| (index, caption))
            })
        };
        let requests = captions()
            .take_while(|_| !interrupt::interrupted())
            .map(|(_, caption)| annotator.change(&caption));
        let expected = estimate(endpoint, &cache, requests, read_change)?;
        interrupt::check()?;
        let what = format!(
            "{} for {}",
            plural(captions_in_all, "caption"),
            endpoint.model()
        );
        self.endpoint.tell(&what, &expected, output);
        if self.endpoint.is_dry_run() {
            return Ok(None);
        }

        let mut failed: BTreeMap<usize, String> = BTreeMap::new();
        let (mut pace, mut done, mut answered) = (Pace::new(), 0, 0);
        let spent = ask::<_, _, anyhow::Error>(
            endpoint,
            &mut cache,
            captions(),
            |(_, caption)| Ok(annotator.change(caption)),
            read_change,
            |event| {
                if let Asked::Done { job, result } = event {
                    done += 1;
                    match result {
                        Ok((is_dynamic, _)) => {
                            answered += 1;
                            judged.kept[job.0] |= is_dynamic;
                        }
                        Err(failure) => drop(failed.insert(job.0, failure.to_string())),
                    }
                }
                pace.show(|| format!("{done}/{captions_in_all} captions"));
                interrupt::flow()
            },
        );
        pace.finish();
        let spent = spent?;
        if let (0, Some(reason)) = (answered, failed.values().next()) {
            bail!("no caption was judged, the first for {reason}");
        }
        failed.retain(|&row, _| !judged.kept[row]);
        judged.unanswered = failed.len();
        judged.first_unanswered = failed.into_values().next();
        let says = format!("{} says so", endpoint.model());
        let kept = judged.kept.iter().filter(|kept| **kept).count();
        judged.reasons.insert(says, kept);
        self.endpoint.tell_spent(&spent, output);
        Ok(Some(judged))
    }

    /// Copies the rows that are kept.
    fn write(&self, lists: &[CaptionList], kept: &[bool]) -> Result<()> {
        let mut problem = None;
        let written = atomically(&self.output, |file| {
            let mut stop = |error: anyhow::Error| -> io::Result<()> {
                problem = Some(error);
                Err(io::Error::other("stopped"))
            };
            match lists[0].header() {
                Ok(header) => write_line(file, &header)?,
                Err(error) => return stop(error.into()),
            }
            for (row, _) in rows(lists)
                .zip(kept)
                .filter(|(row, kept)| **kept || row.is_err())
            {
                match (row, interrupt::check()) {
                    (Ok(row), Ok(())) => write_line(file, &row.bytes)?,
                    (Err(error), _) => return stop(error.into()),
                    (_, Err(error)) => return stop(error),
                }
            }
            Ok(())
        });
        match problem {
            Some(error) => Err(error),
            None => Ok(written?),
        }
    }

    /// Says how many rows were kept, and why.
    fn tell(&self, lists: &[CaptionList], judged: &Judged, output: &mut Output) -> Result<()> {
        let all = judged.kept.len();
        let kept = judged.kept.iter().filter(|kept| **kept).count();
        let still = all - kept - judged.unusable - judged.unanswered;
        output.line(format!(
            "{kept} of {} → {}",
            plural(all, "row"),
            self.output.display()
        ))?;
        let mut reasons: Vec<_> = judged
            .reasons
            .iter()
            .filter(|(_, count)| **count > 0)
            .collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (reason, count) in reasons {
            output.line(format!("  kept: {count}, {reason}"))?;
        }
        if still > 0 {
            output.line(format!("  left out: {still}, no change"))?;
        }
        if let Some(Skip { key, message, .. }) = &judged.first_unusable {
            output.line(format!(
                "  left out: {}, of no use; the first is {key}: {message}",
                judged.unusable
            ))?;
        }
        if let Some(reason) = &judged.first_unanswered {
            output.line(format!(
                "  left out: {}, without a verdict; the first has {reason}; the same command asks again",
                judged.unanswered
            ))?;
        }
        // A path without a folder is in `.`.
        let folder = |path: &Path| path.parent().map(|folder| Path::new(".").join(folder));
        let folders: BTreeSet<_> = lists.iter().map(|list| folder(list.path())).collect();
        if folders.len() > 1 {
            output.remark(
                "videos are named from the folders of their lists, which differ: filter the lists of each folder by themselves, so that a source can name its folder as `media`",
            );
        } else if !folders.contains(&folder(&self.output)) {
            output.remark(format!(
                "videos are named from the folder of their list: a source of {} needs `media`, that folder",
                self.output.display()
            ));
        }
        output.set("output", self.output.to_string_lossy());
        output.set("rows", all);
        output.set("kept", kept);
        output.set("reasons", &judged.reasons);
        output.set("no_change", still);
        output.set("unusable", judged.unusable);
        output.set("unanswered", judged.unanswered);
        Ok(())
    }
}

/// Writes bytes that others follow. The last row of a file may have no line break.
fn write_line(file: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    match bytes.last() {
        None | Some(b'\n') => Ok(()),
        Some(_) => file.write_all(b"\n"),
    }
}

/// All rows, one list after another.
fn rows(lists: &[CaptionList]) -> impl Iterator<Item = data::Result<CaptionRow>> + '_ {
    lists
        .iter()
        .flat_map(|list| -> Box<dyn Iterator<Item = _> + '_> {
            match list.rows() {
                Ok(rows) => Box::new(rows),
                Err(error) => Box::new(iter::once(Err(error))),
            }
        })
}

/// Judges every row by rules.
fn by_rules(lists: &[CaptionList]) -> Result<Judged> {
    let mut judged = Judged::default();
    let all: usize = lists.iter().map(CaptionList::len).sum();
    let mut pace = Pace::new();
    for row in rows(lists) {
        interrupt::check()?;
        let decided = match row?.captions {
            Ok(captions) => captions.iter().find_map(|caption| reason(caption)),
            Err(skip) => {
                judged.unusable(skip);
                None
            }
        };
        judged.kept.push(decided.is_some());
        if let Some(reason) = decided {
            *judged.reasons.entry(reason.to_string()).or_default() += 1;
        }
        pace.show(|| format!("{}/{all} rows", judged.kept.len()));
    }
    pace.finish();
    Ok(judged)
}

/// The first word that decides that a caption is dynamic. Hints decide together.
fn reason(caption: &str) -> Option<Reason> {
    let judgement = judge(caption);
    let decides = |reason: &Reason| reason.weight() > Reason::Hint.weight();
    let mut reasons = judgement.evidence.iter().map(|evidence| evidence.reason);
    judgement
        .is_dynamic()
        .then(|| reasons.find(decides).unwrap_or(Reason::Hint))
}
