//! Which captions describe change over time.
//!
//! The paper trains its tokenizer on those videos of WebVid-10M whose captions have "dynamic content", as LLaMA-3
//! judged them: 4.8 million of 10 (appendix A.1, "Training Data"), and its language model on the same ones ("filtered
//! for temporal dynamics in captions", section 3.3.1). This module judges English captions by rules instead. It needs
//! no model, and says which words decided.
//!
//! ```
//! use divot_data::captions::{is_dynamic, judge};
//!
//! assert!(is_dynamic("A dog runs along the beach"));
//! assert!(!is_dynamic("A pair of running shoes on the beach"));
//!
//! let judgement = judge("The camera pans to the left, then a car turns.");
//! assert_eq!(
//!     judgement.to_string(),
//!     r#"dynamic (6): "camera pans" is a phrase of change, "then" is a phrase of change, "turns" is something happening"#
//! );
//! ```
//!
//! # What counts
//!
//! A caption is dynamic if it says that something visible moves, acts or changes, or that the camera moves. A posture,
//! a look or a state is not: standing, smiling, watching, wearing, sleeping. Nor is what a picture shows ("a statue of a
//! dancer") or a thing that is named after an action ("a parking lot").
//!
//! # Rules
//!
//! Evidence is a word or phrase that says change. It weighs two if it decides alone, and one if it only hints. A
//! caption is dynamic with a [score](Judgement::score) of two.
//!
//! | evidence | weight | examples | not |
//! | --- | --- | --- | --- |
//! | a participle in -ing of a verb of motion | 2 | "woman walking", "falling snow" | "running shoes", "for cutting", "the building" |
//! | the same of a verb in no list, after who does it | 2 | "a man is yodelling" | "is missing", "sitting" |
//! | a finite form, where a verb can stand | 2 | "she waves", "kids run", "zoom in" | "the waves", "ski runs" |
//! | a past form, where it is no adjective | 2 | "is thrown into", "being painted" | "a broken cup" |
//! | phrases for events, moves of the camera, and order | 2 | "time lapse", "explosion", "then" | |
//! | any other word in -ing, and words like "while" and "until" | 1 | | "ceiling" |
//!
//! Words do not count after a negation, within the name of a thing, and after what makes a picture of them ("a painting
//! of"). The lists are the text files in `captions/words`, each with a line that says what it holds.
//!
//! The rules do not understand what they read. docs/reproduction.md has their precision and recall.

mod rules;
mod tokens;
mod words;

use std::fmt;

/// What a piece of evidence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A participle in -ing: an action in progress.
    Progressive,
    /// A finite verb in the present, or an imperative.
    Finite,
    /// A verb in the past or in the passive.
    Past,
    /// A phrase for change, motion, a move of the camera, or order in time.
    Event,
    /// A word that often stands with change, and by itself proves none.
    Hint,
}

impl Reason {
    /// What it adds to the score.
    pub fn weight(self) -> usize {
        match self {
            Self::Hint => 1,
            _ => 2,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Progressive => "an action in progress",
            Self::Finite => "something happening",
            Self::Past => "something done",
            Self::Event => "a phrase of change",
            Self::Hint => "a hint",
        })
    }
}

/// Words of a caption that speak for change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The words, as the caption has them.
    pub words: String,
    /// Why they count.
    pub reason: Reason,
}

/// What a caption was judged by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What speaks for change, in the order of the caption.
    pub evidence: Vec<Evidence>,
}

impl Judgement {
    /// The score from which a caption is dynamic.
    pub const DYNAMIC: usize = 2;

    /// Sum of the weights of the evidence.
    pub fn score(&self) -> usize {
        self.evidence.iter().map(|e| e.reason.weight()).sum()
    }

    /// Whether the caption describes change over time.
    pub fn is_dynamic(&self) -> bool {
        self.score() >= Self::DYNAMIC
    }
}

/// One line: the verdict, the score, and the words that decided.
impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_dynamic() {
            "dynamic"
        } else {
            "static"
        };
        write!(f, "{verdict} ({})", self.score())?;
        for (number, Evidence { words, reason }) in self.evidence.iter().enumerate() {
            let separator = if number == 0 { ':' } else { ',' };
            write!(f, "{separator} {words:?} is {reason}")?;
        }
        Ok(())
    }
}

/// Judges an English caption. It keeps nothing between calls and takes time linear in the caption's length, so that a
/// file of any size can be streamed through it.
pub fn judge(caption: &str) -> Judgement {
    rules::judge(caption)
}

/// Whether an English caption describes change over time: [`judge`] without its reasons.
pub fn is_dynamic(caption: &str) -> bool {
    judge(caption).is_dynamic()
}
