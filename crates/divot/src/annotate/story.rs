//! Storylines of consecutive clips.

use serde::{Deserialize, Serialize};

use super::{Annotator, one_line};
use crate::endpoint::{Answer, Format, Request};

/// Consecutive clips of a story (paper, appendix A.2).
pub const SCENES: usize = 3;
/// Tokens of a storyline, at most.
const STORY_TOKENS: u32 = 500;

/// What is told with consecutive clips.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storyline {
    /// What somebody asks for to get the story.
    pub instruction: String,
    /// The text before each clip.
    pub scenes: Vec<String>,
    /// The text after the last clip; may be empty.
    #[serde(default)]
    pub ending: String,
}

impl Annotator {
    /// Asks for the storyline of consecutive clips with these captions.
    pub fn story(&self, captions: &[String; SCENES]) -> Request {
        let listed: String = captions
            .iter()
            .enumerate()
            .map(|(index, caption)| format!("{}. {caption}\n", index + 1))
            .collect();
        Request::new(STORY_TOKENS + self.thinking)
            .system("You turn descriptions of video clips into short illustrated stories.")
            .text(format!(
                "{}These are the captions of {SCENES} consecutive clips of a video:\n{listed}\
                 Tell them as one story. Answer with a JSON object of these keys:\n\
                 \"instruction\": one sentence by which somebody asks for this story, such as \"Tell a story about …\", \
                 without a word of clips or captions;\n\
                 \"scenes\": a list of {SCENES} texts, one for each clip in its order, each of one or two sentences that \
                 tell what is seen in it; a character has the same name in all of them;\n\
                 \"ending\": one sentence after the last clip, or \"\".",
                self.introduction()
            ))
            .format(Format::Json)
    }
}

impl Storyline {
    /// Reads an answer.
    ///
    /// # Errors
    /// If it is no storyline of so many clips.
    pub fn read(answer: &Answer) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("the storyline {what}"));
        let Ok(story) = answer.json::<Self>() else {
            return wrong("is of another form than was asked for");
        };
        let story = Self {
            instruction: one_line(&story.instruction),
            scenes: story.scenes.iter().map(|text| one_line(text)).collect(),
            ending: one_line(&story.ending),
        };
        if story.scenes.len() != SCENES {
            return wrong(&format!("has {} scenes, not {SCENES}", story.scenes.len()));
        }
        if story.instruction.is_empty() || story.scenes.iter().any(String::is_empty) {
            return wrong("has an empty text");
        }
        Ok(story)
    }

    /// Makes a storyline of captions alone: they are its texts, and the instruction repeats the first one.
    pub fn of_captions(captions: &[String; SCENES]) -> Self {
        Self {
            instruction: format!("Tell a story that begins like this: {}", captions[0]),
            scenes: captions.to_vec(),
            ending: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storylines_have_three_texts() {
        let read = |text: &str| {
            Storyline::read(&Answer {
                text: text.to_owned(),
                finish: None,
                usage: None,
                cached: false,
            })
        };
        let story = read(r#"{"instruction": "Tell\nit.", "scenes": ["a", " b ", "c"]}"#).unwrap();
        assert_eq!(story.instruction, "Tell it.");
        assert_eq!(
            (story.scenes.join("|"), story.ending.as_str()),
            ("a|b|c".to_owned(), "")
        );
        for (text, problem) in [
            (
                r#"{"instruction": "i", "scenes": ["a", "b"]}"#,
                "has 2 scenes, not 3",
            ),
            (
                r#"{"instruction": "i", "scenes": ["a", "", "c"]}"#,
                "has an empty text",
            ),
            (
                r#"{"instruction": " ", "scenes": ["a", "b", "c"]}"#,
                "has an empty text",
            ),
            (
                r#"{"scenes": ["a", "b", "c"]}"#,
                "is of another form than was asked for",
            ),
            (
                r#"["a", "b", "c"]"#,
                "is of another form than was asked for",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), format!("the storyline {problem}"));
        }
    }
}
