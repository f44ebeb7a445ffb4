//! Training rows: the tokens of a sample, and which of them are learned.

use crate::error::LlmError;
use crate::layout::Role;
use crate::prompt::{Medium, Prompt, Shown, SpecialTokens};
use crate::tokenizer::{Segment, TextTokenizer};

/// The id of padding, as released. No token sees padding, and it is never learned.
const PADDING: u32 = 0;

/// A training row. `ids`, `labels`, `roles` and `positions` have an entry for each token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The token itself if it is learned, that is, predicted from the hidden state before it.
    pub labels: Vec<Option<u32>>,
    /// How attention treats each token.
    pub roles: Vec<Role>,
    /// Rotary positions.
    pub positions: Vec<usize>,
    /// Indices of the tokens that are replaced by features, clip after clip.
    pub inputs: Vec<usize>,
    /// Indices of the queries that features are predicted from, clip after clip.
    pub outputs: Vec<usize>,
}

impl Sequence {
    /// Returns the number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether the row has no tokens.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the row, padded at its end to `length` tokens: id 0, no label, and consecutive positions.
    ///
    /// # Panics
    /// If the row is longer.
    pub fn padded(&self, length: usize) -> Self {
        assert!(self.len() <= length, "a row longer than its padding");
        let mut row = self.clone();
        while row.len() < length {
            row.push(PADDING, None, Role::Padding);
        }
        row
    }

    /// Adds a token at the next position.
    fn push(&mut self, id: u32, label: Option<u32>, role: Role) {
        let position = self.positions.last().map_or(0, |last| last + 1);
        self.ids.push(id);
        self.labels.push(label);
        self.roles.push(role);
        self.positions.push(position);
    }

    /// Adds tokens that are only read.
    fn given(&mut self, ids: &[u32]) {
        for &id in ids {
            self.push(id, None, Role::Causal);
        }
    }

    /// Adds tokens that are learned.
    fn learned(&mut self, ids: &[u32]) {
        for &id in ids {
            self.push(id, Some(id), Role::Causal);
        }
    }

    /// Adds the features of a clip to read.
    fn features(&mut self, ids: &[u32]) {
        self.inputs.extend(self.len()..self.len() + ids.len());
        self.given(ids);
    }

    /// Adds the queries of a clip to predict.
    fn queries(&mut self, ids: &[u32], role: Role) {
        self.outputs.extend(self.len()..self.len() + ids.len());
        for &id in ids {
            self.push(id, None, role);
        }
    }

    /// Adds a prompt with its clips.
    fn prompt(&mut self, prompt: &Prompt, features: usize) {
        let start = self.len();
        let clips = prompt.clips.iter().map(|clip| start + clip);
        self.inputs
            .extend(clips.flat_map(|clip| clip..clip + features));
        self.given(&prompt.ids);
    }

    /// Cuts a comprehension row at its end.
    fn cut(&mut self, max_length: usize) -> Result<(), LlmError> {
        let tokens = self.len();
        if tokens <= max_length {
            return Ok(());
        }
        self.ids.truncate(max_length);
        self.labels.truncate(max_length);
        self.roles.truncate(max_length);
        self.positions.truncate(max_length);
        let whole = self.inputs.iter().all(|&index| index < max_length);
        match whole && self.labels.iter().any(Option::is_some) {
            true => Ok(()),
            false => Err(LlmError::RowTooLong { tokens, max_length }),
        }
    }
}

/// A question and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'a> {
    /// The question, which is never learned. Every `<video>` with a following line break is removed.
    pub question: &'a str,
    /// The answer, which is learned.
    pub answer: &'a str,
}

/// Builds training rows as the released system does. Names of special tokens in a text stay text.
///
/// Comprehension rows that are too long are cut at their end. In generation rows, the caption is cut first.
/// If a row still does not fit, the result is an error, and training should skip the sample.
#[derive(Debug, Clone, Copy)]
pub struct SequenceBuilder<'a> {
    /// The text tokenizer.
    pub text: &'a TextTokenizer,
    /// Its special tokens.
    pub tokens: &'a SpecialTokens,
    /// Maximum number of tokens of a row. The released values are 1400 for videos, 300 for images and 180
    /// for generation in pre-training, and 1650 and 1000 in tuning.
    pub max_length: usize,
}

impl SequenceBuilder<'_> {
    /// Builds a text of its own, `<s>text</s>`, of which all but the first token is learned.
    ///
    /// # Errors
    /// If the text is empty.
    pub fn plain(&self, text: &str) -> Result<Sequence, LlmError> {
        let mut row = Sequence::default();
        row.given(&[self.text.bos()]);
        row.learned(&self.encode("text", text)?);
        row.learned(&[self.text.eos()]);
        row.cut(self.max_length)?;
        Ok(row)
    }

    /// Builds a video or image with its caption. The caption and the end token are learned.
    ///
    /// - without an instruction: `<s><vid>…</vid>caption</s>`
    /// - with one: `<s>[INST] <vid>…</vid>instruction [/INST]\ncaption</s>`
    ///
    /// # Errors
    /// If a text is empty, or the clips and the beginning of the caption do not fit.
    pub fn caption(
        &self,
        shown: Shown,
        instruction: Option<&str>,
        caption: &str,
    ) -> Result<Sequence, LlmError> {
        if let Some(question) = instruction {
            let answer = caption;
            return self.answers(shown, &[Turn { question, answer }]);
        }
        let mut row = Sequence::default();
        let prompt = Prompt::shown(self.text, self.tokens, shown)?;
        row.prompt(&prompt, self.tokens.features.len());
        row.learned(&self.encode("caption", caption)?);
        row.learned(&[self.text.eos()]);
        row.cut(self.max_length)?;
        Ok(row)
    }

    /// Builds questions about what is shown, with their answers. Each answer is learned, and one end token
    /// after the last answer.
    ///
    /// `<s>[INST] <vid>…</vid>question [/INST]\nanswer`, then for each further turn
    /// `\n[INST] question [/INST]\nanswer`, then `</s>`.
    ///
    /// # Errors
    /// If there is no turn, a text is empty, or the clips and the beginning of the first answer do not fit.
    pub fn answers(&self, shown: Shown, turns: &[Turn<'_>]) -> Result<Sequence, LlmError> {
        let mut row = Sequence::default();
        for (number, turn) in turns.iter().enumerate() {
            let question = turn.question.replace("<video>\n", "");
            if number == 0 {
                let prompt = Prompt::question(self.text, self.tokens, shown, &question)?;
                row.prompt(&prompt, self.tokens.features.len());
            } else {
                if question.trim().is_empty() {
                    return Err(LlmError::Empty("question"));
                }
                let text = format!("\n[INST] {question} [/INST]\n");
                row.given(&self.text.encode(&[Segment::Text(&text)])?);
            }
            row.learned(&self.encode("answer", turn.answer)?);
        }
        if row.is_empty() {
            return Err(LlmError::Empty("conversation"));
        }
        row.learned(&[self.text.eos()]);
        row.cut(self.max_length)?;
        Ok(row)
    }

    /// Builds a caption and its video or image, which is one clip, predicted from queries.
    ///
    /// - without an instruction: `<s>caption<vid>…</vid></s>`; the end token is learned
    /// - with one, such as `Generate a video of`:
    ///   `<s>[INST] instruction caption [/INST]\n<vid>…</vid></s>`; `<vid>`, `</vid>` and the end token
    ///   are learned
    ///
    /// A caption that is too long is cut at its end.
    ///
    /// # Errors
    /// If a text is empty, or the row does not fit even with a shorter caption.
    pub fn generation(
        &self,
        medium: Medium,
        instruction: Option<&str>,
        caption: &str,
    ) -> Result<Sequence, LlmError> {
        let mut row = Sequence::default();
        let [open, close] = self.tokens.marks(medium);
        let mark = |row: &mut Sequence, id: u32| match instruction {
            Some(_) => row.learned(&[id]),
            None => row.given(&[id]),
        };
        let rest = self.tokens.features.len() + 5;
        let prompt = self.fitting(caption, rest, |caption| {
            Ok(match instruction {
                Some(instruction) => {
                    Prompt::instruction(self.text, &format!("{instruction} {caption}"))?
                }
                None => Prompt::text(self.text, caption)?,
            })
        })?;
        row.given(&prompt.ids);
        mark(&mut row, open);
        row.given(&[self.tokens.clip]);
        row.queries(&self.tokens.features, Role::Query { block: 0 });
        row.given(&[self.tokens.clip_end]);
        mark(&mut row, close);
        row.learned(&[self.text.eos()]);
        Ok(row)
    }

    /// Builds a story: the text and the clip of each scene, then the text after the last clip, which may be
    /// empty. Texts, `<vid>`, `</vid>` and the end token are learned, with and without an instruction.
    ///
    /// The row is `<s>[INST] instruction [/INST]\n` or `<s>`. For each scene follow `text<vid><frame>`,
    /// queries that no later token sees, the features of the same clip at the positions of the queries, and
    /// `</frame></vid>`. The row ends with `ending</s>`. Every token therefore sees the same tokens as in
    /// generation. `inputs` and `outputs` both have all clips.
    ///
    /// # Errors
    /// If there is no scene, the instruction is empty, or the row does not fit.
    pub fn story(
        &self,
        instruction: Option<&str>,
        scenes: &[&str],
        ending: &str,
    ) -> Result<Sequence, LlmError> {
        if scenes.is_empty() {
            return Err(LlmError::Empty("story"));
        }
        let prompt = match instruction {
            Some(instruction) => Prompt::instruction(self.text, instruction)?,
            None => Prompt::text(self.text, "")?,
        };
        let tokens = self.tokens;
        let [open, close] = tokens.marks(Medium::Video);
        let mut row = Sequence::default();
        row.given(&prompt.ids);
        for (block, scene) in scenes.iter().enumerate() {
            row.learned(&self.text.encode(&[Segment::Text(scene)])?);
            row.learned(&[open]);
            row.given(&[tokens.clip]);
            row.queries(&tokens.features, Role::HiddenQuery { block });
            row.features(&tokens.features);
            // The features have the positions of the queries.
            let start = row.len() - tokens.features.len();
            for position in &mut row.positions[start..] {
                *position -= tokens.features.len();
            }
            row.given(&[tokens.clip_end]);
            row.learned(&[close]);
        }
        row.learned(&self.text.encode(&[Segment::Text(ending)])?);
        row.learned(&[self.text.eos()]);
        match row.len() <= self.max_length {
            true => Ok(row),
            false => Err(LlmError::RowTooLong {
                tokens: row.len(),
                max_length: self.max_length,
            }),
        }
    }

    /// Encodes a text, which must not be empty.
    fn encode(&self, what: &'static str, text: &str) -> Result<Vec<u32>, LlmError> {
        if text.trim().is_empty() {
            return Err(LlmError::Empty(what));
        }
        Ok(self.text.encode(&[Segment::Text(text)])?)
    }

    /// Builds the prompt of a caption, cut so that `rest` more tokens fit.
    fn fitting(
        &self,
        caption: &str,
        rest: usize,
        prompt: impl Fn(&str) -> Result<Prompt, LlmError>,
    ) -> Result<Prompt, LlmError> {
        let ids = self.encode("caption", caption)?;
        let mut found = prompt(caption)?;
        let mut kept = ids.len();
        loop {
            let tokens = found.ids.len() + rest;
            if tokens <= self.max_length {
                return Ok(found);
            }
            let too_long = LlmError::RowTooLong {
                tokens,
                max_length: self.max_length,
            };
            let Some(fewer) = kept.checked_sub(tokens - self.max_length) else {
                return Err(too_long);
            };
            kept = fewer;
            let mut stream = self.text.stream(false);
            let mut shorter = String::new();
            for &id in &ids[..kept] {
                // The bytes of an incomplete character are left out.
                shorter += &stream.push(id)?;
            }
            if shorter.trim().is_empty() {
                return Err(too_long);
            }
            found = prompt(&shorter)?;
        }
    }
}
