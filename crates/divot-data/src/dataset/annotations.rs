//! What a line of JSONL says of its sample.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::config::Format;
use super::media::Part;
use super::records::Problem;
use super::sample::{Reason, Text, Turn};

/// What the released system strikes from questions.
const PLACEHOLDER: &str = "<video>\n";

/// A sample whose files are not read yet.
#[derive(Debug)]
pub(super) struct Item {
    pub files: Vec<MediaFile>,
    pub text: Text,
}

/// A video or image of a sample.
#[derive(Debug)]
pub(super) struct MediaFile {
    /// Paths that it may have, the likeliest first.
    pub names: Vec<String>,
    /// Only its first frame is taken.
    pub image: bool,
    pub part: Part,
}

/// A text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "neither a text nor a list of texts")]
pub(super) enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

#[derive(Deserialize)]
struct Captioned {
    video: Option<String>,
    image: Option<String>,
    caption: Option<Texts>,
}

#[derive(Deserialize)]
struct Questioned {
    video: Option<String>,
    image: Option<String>,
    question: Option<String>,
    answer: Option<String>,
    questions: Option<Texts>,
    answers: Option<Texts>,
    data: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Told {
    instruction: Option<String>,
    scenes: Vec<Scene>,
    ending: Option<String>,
}

#[derive(Deserialize)]
struct Scene {
    video: String,
    start: Option<f64>,
    end: Option<f64>,
    text: Option<String>,
}

#[derive(Deserialize)]
struct Written {
    text: String,
}

/// The caption in the JSON file of a sample in an archive.
#[derive(Deserialize)]
struct Described {
    caption: Option<Texts>,
}

/// Reads a line. `uniform` draws which of several captions is taken.
pub(super) fn line(
    format: Format,
    wants_text: bool,
    line: &[u8],
    uniform: &mut dyn FnMut() -> f64,
) -> Result<Item, Problem> {
    match format {
        Format::Questions => questions(json(line)?, wants_text),
        Format::Story => story(json(line)?, wants_text),
        Format::Texts => written(json(line)?),
        _ => {
            let line: Captioned = json(line)?;
            let file = file(line.video, line.image)?;
            let text = match wants_text {
                true => caption(line.caption, uniform)?,
                false => Text::None,
            };
            Ok(Item {
                files: vec![file],
                text,
            })
        }
    }
}

/// A text without files.
fn written(line: Written) -> Result<Item, Problem> {
    match line.text.trim().is_empty() {
        true => Err(Problem::new(Reason::NoText, "has an empty text")),
        false => Ok(Item {
            files: Vec::new(),
            text: Text::Plain(line.text),
        }),
    }
}

/// The captions of a line that are not blank.
pub(super) fn captions(line: &[u8]) -> Result<Vec<String>, Problem> {
    let line: Captioned = json(line)?;
    file(line.video, line.image)?;
    texts(line.caption)
}

/// The caption in a JSON file.
pub(super) fn described(text: &[u8], uniform: &mut dyn FnMut() -> f64) -> Result<Text, Problem> {
    caption(json::<Described>(text)?.caption, uniform)
}

/// The texts that are not blank, of which there is one at least.
pub(super) fn texts(texts: Option<Texts>) -> Result<Vec<String>, Problem> {
    let mut texts = texts.map(Texts::into_vec).unwrap_or_default();
    texts.retain(|text| !text.trim().is_empty());
    match texts.is_empty() {
        true => Err(Problem::new(Reason::NoText, "has no caption")),
        false => Ok(texts),
    }
}

/// One of several captions that are not blank.
pub(super) fn caption(
    texts: Option<Texts>,
    uniform: &mut dyn FnMut() -> f64,
) -> Result<Text, Problem> {
    let mut texts = self::texts(texts)?;
    let number = match texts.len() {
        1 => 0,
        // A product may round up to the count.
        count => ((uniform() * count as f64) as usize).min(count - 1),
    };
    Ok(Text::Caption(texts.swap_remove(number)))
}

fn json<T: DeserializeOwned>(text: &[u8]) -> Result<T, Problem> {
    let text = std::str::from_utf8(text).map_err(|_| Problem::malformed("is not UTF-8"))?;
    let wrong = |error: serde_json::Error| {
        // The line within the text is always the first; the record's own line is in the sample's name.
        let error = error.to_string();
        let what = error.split(" at line ").next().unwrap_or_default();
        Problem::malformed(format!("is no JSON of this format: {what}"))
    };
    serde_json::from_str(text).map_err(wrong)
}

/// The video or image of a line.
fn file(video: Option<String>, image: Option<String>) -> Result<MediaFile, Problem> {
    let (name, image) = match (video, image) {
        (Some(video), None) => (video, false),
        (None, Some(image)) => (image, true),
        (None, None) => return Err(Problem::malformed("has neither `video` nor `image`")),
        (Some(_), Some(_)) => return Err(Problem::malformed("has both `video` and `image`")),
    };
    Ok(MediaFile {
        names: vec![name],
        image,
        part: Part::Random,
    })
}

fn questions(line: Questioned, wants_text: bool) -> Result<Item, Problem> {
    let file = file(line.video, line.image)?;
    let text = match wants_text {
        true => {
            let one = |text: Option<String>| text.map(Texts::One);
            let lists = [
                (one(line.question), one(line.answer), "question", "answer"),
                (line.questions, line.answers, "questions", "answers"),
            ];
            turns(lists, line.data)?
        }
        false => Text::None,
    };
    Ok(Item {
        files: vec![file],
        text,
    })
}

/// Questions and answers with their fields' names.
type Pair = (Option<Texts>, Option<Texts>, &'static str, &'static str);

fn turns(pairs: [Pair; 2], data: Option<Vec<String>>) -> Result<Text, Problem> {
    let mut found: Option<Vec<Turn>> = None;
    let mut add = |turns: Vec<Turn>| match found.replace(turns) {
        None => Ok(()),
        Some(_) => Err(Problem::malformed("has questions in more than one form")),
    };
    for (questions, answers, question, answer) in pairs {
        match (questions, answers) {
            (Some(questions), Some(answers)) => {
                let (questions, answers) = (questions.into_vec(), answers.into_vec());
                if questions.len() != answers.len() {
                    return Err(Problem::malformed(format!(
                        "has {} `{question}` and {} `{answer}`",
                        questions.len(),
                        answers.len()
                    )));
                }
                let turns = questions.into_iter().zip(answers);
                add(turns
                    .map(|(question, answer)| turn(question, answer))
                    .collect())?;
            }
            (None, None) => {}
            _ => {
                let message = format!("has only one of `{question}` and `{answer}`");
                return Err(Problem::malformed(message));
            }
        }
    }
    if let Some(data) = data {
        if data.len() % 2 != 0 {
            let message = format!(
                "`data` has {} texts; the last question has no answer",
                data.len()
            );
            return Err(Problem::malformed(message));
        }
        let mut data = data.into_iter();
        let mut turns = Vec::new();
        while let (Some(question), Some(answer)) = (data.next(), data.next()) {
            turns.push(turn(question, answer));
        }
        add(turns)?;
    }
    let turns = found.unwrap_or_default();
    if turns.is_empty() {
        return Err(Problem::new(Reason::NoText, "has no questions"));
    }
    if turns.iter().any(|turn| turn.answer.trim().is_empty()) {
        return Err(Problem::new(Reason::NoText, "an answer is empty"));
    }
    Ok(Text::Turns(turns))
}

fn turn(question: String, answer: String) -> Turn {
    Turn {
        question: question.replace(PLACEHOLDER, ""),
        answer,
    }
}

fn story(line: Told, wants_text: bool) -> Result<Item, Problem> {
    if line.scenes.is_empty() {
        return Err(Problem::malformed("`scenes` is empty"));
    }
    let mut files = Vec::with_capacity(line.scenes.len());
    let mut texts = Vec::with_capacity(line.scenes.len());
    for (number, scene) in line.scenes.into_iter().enumerate() {
        let part = match (scene.start, scene.end) {
            (None, None) => Part::Random,
            (Some(start), None) if start >= 0.0 => Part::From(start),
            (start, Some(end)) if (0.0..end).contains(&start.unwrap_or(0.0)) => {
                Part::Within(start.unwrap_or(0.0), end)
            }
            _ => {
                return Err(Problem::malformed(format!(
                    "`start` and `end` of scene {} are no part of a video",
                    number + 1
                )));
            }
        };
        files.push(MediaFile {
            names: vec![scene.video],
            image: false,
            part,
        });
        texts.push(scene.text.unwrap_or_default());
    }
    let text = match wants_text {
        false => Text::None,
        true if texts.iter().any(|text| text.trim().is_empty()) => {
            return Err(Problem::new(Reason::NoText, "a scene has no text"));
        }
        true => Text::Story {
            instruction: line.instruction,
            scenes: texts,
            ending: line.ending.unwrap_or_default(),
        },
    };
    Ok(Item { files, text })
}
