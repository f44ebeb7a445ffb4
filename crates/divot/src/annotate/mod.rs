//! What a language model behind an [endpoint](crate::endpoint) is asked to annotate training data.
//!
//! | request | the answer | source |
//! | --- | --- | --- |
//! | [`Annotator::caption`] | a caption of a clip, from eight of its frames | paper, appendix A.2: GPT-4V |
//! | [`Annotator::story`] | an instruction and a storyline for three consecutive clips, from their captions | the same: GPT-4 |
//! | [`Annotator::change`] | whether a caption describes change over time | appendix A.1: LLaMA-3 |
//!
//! The paper has no prompts: these are our own. Each request has a function that reads its answer, for
//! [`ask`](crate::endpoint::ask).

mod story;

use divot_data::Frame;

use crate::endpoint::{Answer, EndpointError, Image, Request};

pub use story::{SCENES, Storyline};

/// Frames of a clip that a caption is written from.
pub const CAPTION_FRAMES: usize = 8;
/// Tokens of a caption, at most.
const CAPTION_TOKENS: u32 = 200;
/// Tokens of a verdict, at most.
const VERDICT_TOKENS: u32 = 8;

/// Writes the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotator {
    /// What the videos are and who is in them, which frames do not say: "Curious George, a series about a monkey".
    pub about: Option<String>,
    /// Tokens that a reasoning model may think, on top of those of an answer.
    pub thinking: u32,
}

impl Annotator {
    /// Asks for a caption of a clip of `seconds`.
    ///
    /// # Errors
    /// If a frame cannot be encoded.
    pub fn caption(&self, frames: &[Frame], seconds: f64) -> Result<Request, EndpointError> {
        let mut request = Request::new(CAPTION_TOKENS + self.thinking)
            .system("You write captions of short video clips, which a video generator is trained on.")
            .text(format!(
                "{}These are {} frames of one clip of {seconds:.1} seconds, in order and evenly spread. \
                 In one or two plain sentences, say who or what is there, how they look, where they are, and what they \
                 do or what changes from the first frame to the last. \
                 Write about the clip as a whole. Do not mention frames, images or the clip itself.",
                self.introduction(),
                frames.len()
            ));
        for frame in frames {
            request = request.image(Image::of_frame(frame)?);
        }
        Ok(request)
    }

    /// Asks whether a caption describes change over time.
    pub fn change(&self, caption: &str) -> Request {
        Request::new(VERDICT_TOKENS + self.thinking)
            .system(
                "You judge captions of videos. A caption is dynamic if it says that something visible moves, acts or \
                 changes, or that the camera moves. It is static if it only says what is there: things, places, looks, \
                 postures, states.",
            )
            .text(format!(
                "Caption: {caption}\nIs it dynamic? Answer with one word, yes or no."
            ))
    }

    fn introduction(&self) -> String {
        match &self.about {
            Some(about) => format!("The video: {}\n", about.trim()),
            None => String::new(),
        }
    }
}

/// Returns the frames of a clip of `count` frames that a caption is written from: in the middle of each eighth of it.
pub fn caption_frames(count: usize) -> Vec<usize> {
    let middle = |eighth: usize| (2 * eighth + 1) * count / (2 * CAPTION_FRAMES);
    let mut frames: Vec<usize> = (0..CAPTION_FRAMES).map(middle).collect();
    frames.dedup();
    frames
}

/// Reads a caption: one line.
///
/// # Errors
/// If it was cut off.
pub fn read_caption(answer: &Answer) -> Result<String, String> {
    match answer.is_cut() {
        true => Err("the caption was cut off".to_owned()),
        false => Ok(one_line(&answer.text)),
    }
}

/// Reads whether a caption describes change.
///
/// # Errors
/// If the answer begins with neither yes nor no.
pub fn read_change(answer: &Answer) -> Result<bool, String> {
    let mut words = answer.text.split(|c: char| !c.is_alphabetic());
    let word = words.find(|word| !word.is_empty()).unwrap_or_default();
    match word.to_lowercase().as_str() {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("the answer is neither yes nor no".to_owned()),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Answer {
        Answer {
            text: text.to_owned(),
            finish: None,
            usage: None,
            cached: false,
        }
    }

    #[test]
    fn frames_are_spread_evenly() {
        assert_eq!(caption_frames(16), [1, 3, 5, 7, 9, 11, 13, 15]);
        assert_eq!(caption_frames(8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(caption_frames(3), [0, 1, 2]);
        assert_eq!(caption_frames(1), [0]);
    }

    #[test]
    fn verdicts_are_one_word() {
        for (text, verdict) in [
            ("yes", Some(true)),
            ("**No.**", Some(false)),
            ("YES, it is", Some(true)),
            ("noon", None),
            ("dynamic", None),
            ("...", None),
        ] {
            assert_eq!(read_change(&answer(text)).ok(), verdict, "{text}");
        }
    }

    #[test]
    fn captions_are_one_line() {
        let caption = read_caption(&answer(" A dog\n\nruns. ")).unwrap();
        assert_eq!(caption, "A dog runs.");
        let cut = Answer {
            finish: Some("length".to_owned()),
            ..answer("A dog")
        };
        assert!(read_caption(&cut).is_err());
    }
}
