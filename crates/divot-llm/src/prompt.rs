//! Prompts of text and clips.

use crate::error::LlmError;
use crate::sampling::FrameOrder;
use crate::tokenizer::{Segment, TextTokenizer};

/// The tokens that mark images, videos and the features of their clips.
#[derive(Debug, Clone)]
pub struct SpecialTokens {
    names: Vec<String>,
    /// `<vid>`, which starts a video.
    pub video: u32,
    /// `</vid>`.
    pub video_end: u32,
    /// `<img>`, which starts an image.
    pub image: u32,
    /// `</img>`.
    pub image_end: u32,
    /// `<frame>`, which starts a clip.
    pub clip: u32,
    /// `</frame>`.
    pub clip_end: u32,
    /// `<frame_00000>` and so on, which stand for the features of a clip.
    pub features: Vec<u32>,
}

impl SpecialTokens {
    /// Looks up the tokens by name, because their ids are in no particular order. `num_queries` is the
    /// number of features of a clip.
    ///
    /// # Errors
    /// If one is missing.
    pub fn of(tokenizer: &TextTokenizer, num_queries: usize) -> Result<Self, LlmError> {
        let id = |token: &str| {
            tokenizer
                .id(token)
                .ok_or_else(|| LlmError::NoToken(token.to_owned()))
        };
        let names: Vec<String> = (0..num_queries)
            .map(|i| format!("<frame_{i:05}>"))
            .collect();
        Ok(Self {
            video: id("<vid>")?,
            video_end: id("</vid>")?,
            image: id("<img>")?,
            image_end: id("</img>")?,
            clip: id("<frame>")?,
            clip_end: id("</frame>")?,
            features: names
                .iter()
                .map(|name| id(name))
                .collect::<Result<_, _>>()?,
            names,
        })
    }

    /// Returns the tokens before and after the clips of a video or an image.
    pub fn marks(&self, medium: Medium) -> [u32; 2] {
        match medium {
            Medium::Video => [self.video, self.video_end],
            Medium::Image => [self.image, self.image_end],
        }
    }

    /// Returns the rule that keeps the tokens of a clip in order.
    pub fn order(&self) -> FrameOrder {
        let mut ids = vec![self.clip];
        ids.extend(&self.features);
        ids.push(self.clip_end);
        FrameOrder::new(ids)
    }
}

/// A video or an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// A video.
    Video,
    /// An image, which is one clip of the same frame.
    Image,
}

/// What a prompt shows before a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Nothing.
    Nothing,
    /// A video with this number of clips.
    Video(usize),
    /// An image, which is one clip of the same frame.
    Image,
}

impl Shown {
    fn segments(self, tokens: &SpecialTokens) -> Vec<Segment<'_>> {
        let (open, close, clips) = match self {
            Self::Nothing => return Vec::new(),
            Self::Video(clips) => ("<vid>", "</vid>", clips),
            Self::Image => ("<img>", "</img>", 1),
        };
        let mut segments = vec![Segment::Special(open)];
        for _ in 0..clips {
            segments.push(Segment::Special("<frame>"));
            segments.extend(tokens.names.iter().map(|name| Segment::Special(name)));
            segments.push(Segment::Special("</frame>"));
        }
        segments.push(Segment::Special(close));
        segments
    }
}

/// Token ids, and the positions of clips among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Indices of the first features of the clips.
    pub clips: Vec<usize>,
}

impl Prompt {
    /// Builds a question about what is shown: `<s>[INST] <vid>…</vid>question [/INST]\n`. Names of special
    /// tokens in the question stay text.
    ///
    /// # Errors
    /// If the question is empty, or cannot be encoded.
    pub fn question(
        tokenizer: &TextTokenizer,
        tokens: &SpecialTokens,
        shown: Shown,
        question: &str,
    ) -> Result<Self, LlmError> {
        if question.trim().is_empty() {
            return Err(LlmError::Empty("question"));
        }
        let text = format!("{question} [/INST]\n");
        let mut segments = vec![Segment::Text("[INST] ")];
        segments.extend(shown.segments(tokens));
        segments.push(Segment::Text(&text));
        Self::new(tokenizer, tokens, &segments)
    }

    /// Builds a prompt of what is shown, without text: `<s><vid>…</vid>`.
    ///
    /// # Errors
    /// If the text tokenizer lacks a token.
    pub fn shown(
        tokenizer: &TextTokenizer,
        tokens: &SpecialTokens,
        shown: Shown,
    ) -> Result<Self, LlmError> {
        Self::new(tokenizer, tokens, &shown.segments(tokens))
    }

    /// Builds a request for a video: `<s>[INST] Generate a video of caption [/INST]\n`.
    ///
    /// # Errors
    /// If the caption is empty, or cannot be encoded.
    pub fn generation(tokenizer: &TextTokenizer, caption: &str) -> Result<Self, LlmError> {
        if caption.trim().is_empty() {
            return Err(LlmError::Empty("caption"));
        }
        Self::text(
            tokenizer,
            &format!("[INST] Generate a video of {caption} [/INST]\n"),
        )
    }

    /// Builds an instruction: `<s>[INST] instruction [/INST]\n`.
    ///
    /// # Errors
    /// If the instruction is empty, or cannot be encoded.
    pub fn instruction(tokenizer: &TextTokenizer, instruction: &str) -> Result<Self, LlmError> {
        if instruction.trim().is_empty() {
            return Err(LlmError::Empty("instruction"));
        }
        Self::text(tokenizer, &format!("[INST] {instruction} [/INST]\n"))
    }

    /// Builds a further question after an answer: `</s>[INST] question [/INST]\n`.
    ///
    /// # Errors
    /// If the question is empty, or cannot be encoded.
    pub fn follow_up(tokenizer: &TextTokenizer, question: &str) -> Result<Self, LlmError> {
        if question.trim().is_empty() {
            return Err(LlmError::Empty("question"));
        }
        let text = format!("[INST] {question} [/INST]\n");
        let ids = tokenizer.encode(&[Segment::Special("</s>"), Segment::Text(&text)])?;
        let clips = Vec::new();
        Ok(Self { ids, clips })
    }

    /// Builds the features of a clip and the marks after it, to be read after `<frame>`: `…</frame></vid>`.
    pub fn clip_features(tokens: &SpecialTokens) -> Self {
        let mut ids = tokens.features.clone();
        ids.extend([tokens.clip_end, tokens.video_end]);
        Self {
            ids,
            clips: vec![0],
        }
    }

    /// Builds a prompt of plain text: `<s>text`.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn text(tokenizer: &TextTokenizer, text: &str) -> Result<Self, LlmError> {
        let mut ids = vec![tokenizer.bos()];
        ids.extend(tokenizer.encode(&[Segment::Text(text)])?);
        let clips = Vec::new();
        Ok(Self { ids, clips })
    }

    fn new(
        tokenizer: &TextTokenizer,
        tokens: &SpecialTokens,
        segments: &[Segment<'_>],
    ) -> Result<Self, LlmError> {
        let mut ids = vec![tokenizer.bos()];
        ids.extend(tokenizer.encode(segments)?);
        let clips = (0..ids.len())
            .filter(|&i| ids[i] == tokens.clip)
            .map(|i| i + 1)
            .collect();
        Ok(Self { ids, clips })
    }
}
