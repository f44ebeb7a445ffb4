//! Where a word of the lists is a verb.

use super::tokens::{Break, Token, tokens};
use super::words::{Number, WORDS, Words};
use super::{Evidence, Judgement, Reason};

pub(super) fn judge(caption: &str) -> Judgement {
    let tokens = tokens(caption);
    let lower: Vec<&str> = tokens.iter().map(|token| token.lower.as_str()).collect();
    let caption = Caption {
        silent: silent(&tokens, &lower),
        tokens: &tokens,
        lower: &lower,
        words: &WORDS,
    };

    let mut judgement = Judgement::default();
    let mut hinted = false;
    let mut at = 0;
    while at < tokens.len() {
        let (reason, length) = caption.evidence(at);
        // Words like "while" hint once: many of them in a long caption say no more than one.
        let hint = reason == Some(Reason::Hint) && !lower[at].ends_with("ing");
        if let Some(reason) = reason.filter(|_| !(hint && hinted)) {
            let words: Vec<&str> = tokens[at..at + length]
                .iter()
                .map(|token| token.text)
                .collect();
            judgement.evidence.push(Evidence {
                words: words.join(" "),
                reason,
            });
        }
        hinted |= hint;
        at += length;
    }
    judgement
}

/// Which words do not count: those within the name of a thing, in a picture, or after a negation.
fn silent(tokens: &[Token<'_>], lower: &[&str]) -> Vec<bool> {
    let words = &*WORDS;
    let mut silent = vec![false; tokens.len()];
    let mut picture = false;
    let mut negated = 0;
    let mut named = 0;
    for at in 0..tokens.len() {
        if tokens[at].before != Break::None || words.clause.contains(lower[at]) {
            picture = false;
            negated = 0;
        }
        picture |= words.still.at(&lower[at..]) > 0;
        named = named.max(words.things.at(&lower[at..]));
        silent[at] = picture || negated > 0 || named > 0;
        named = named.saturating_sub(1);
        negated = if words.negation.contains(lower[at]) {
            3
        } else {
            negated - negated.min(1)
        };
    }
    silent
}

struct Caption<'a> {
    tokens: &'a [Token<'a>],
    lower: &'a [&'a str],
    silent: Vec<bool>,
    words: &'a Words,
}

impl Caption<'_> {
    /// What the words from `at` on say, and how many they are.
    fn evidence(&self, at: usize) -> (Option<Reason>, usize) {
        if self.silent[at] {
            return (None, 1);
        }
        let event = self.words.events.at(&self.lower[at..]);
        if event > 0 {
            return (Some(Reason::Event), event);
        }
        let hint = self.words.hints.at(&self.lower[at..]);
        if hint > 0 {
            return (Some(Reason::Hint), hint);
        }
        // "sing" and "swing" end like participles.
        let is_base = self.words.verb(self.lower[at]).motion.base;
        let reason = if self.lower[at].ends_with("ing") && !is_base {
            self.participle(at)
        } else if self.tokens[at].name {
            None
        } else if self.is_third(at) || self.is_base(at) {
            Some(Reason::Finite)
        } else {
            self.is_past(at).then_some(Reason::Past)
        };
        (reason, 1)
    }

    /// "walking", "is yodelling".
    fn participle(&self, at: usize) -> Option<Reason> {
        let word = self.lower[at];
        let verb = self.words.verb(word);
        let before = self.before(at);
        if before == Some("for") || self.is_noun_of_action(at) {
            None
        } else if verb.motion.participle && self.words.is_noun_in_ing(word) {
            let is_verb = self.follows_actor(at) || self.leads_somewhere(at) || self.has_object(at);
            is_verb.then_some(Reason::Progressive)
        } else if verb.motion.participle {
            let named = !self.follows_actor(at)
                && self
                    .next(at)
                    .is_some_and(|next| self.words.has_purpose(next));
            (!named).then_some(Reason::Progressive)
        } else if verb.state.participle
            || self.words.is_noun_in_ing(word)
            || self.tokens[at].name
            || word.len() < 6
        {
            None
        } else if self.follows_actor(at) {
            Some(Reason::Progressive)
        } else {
            Some(Reason::Hint)
        }
    }

    /// "runs", and "she yodels".
    fn is_third(&self, at: usize) -> bool {
        let verb = self.words.verb(self.lower[at]);
        let before = self.before(at);
        if before.is_some_and(|word| self.begins_noun(word)) || self.follows_possessive(at) {
            return false;
        }
        let singular = self
            .subject(at)
            .is_some_and(|number| number != Number::Plural);
        if verb.motion.third {
            return !verb.ambiguous
                || singular
                || self.follows_one(at)
                || self.leads_somewhere(at)
                || self.is_joined(at);
        }
        let word = self.lower[at];
        singular
            && !verb.state.third
            && word.len() > 3
            && word.ends_with('s')
            && !["ss", "us", "is"].iter().any(|end| word.ends_with(end))
            && !self.words.direction.contains(word)
            && self.follows_sure_subject(at)
            && self.next(at).is_none_or(|next| self.can_follow_verb(next))
    }

    /// "kids run", "waves crash against", "pour the milk".
    fn is_base(&self, at: usize) -> bool {
        let verb = self.words.verb(self.lower[at]);
        if !verb.motion.base || self.follows_possessive(at) {
            return false;
        }
        let leads = self.leads_somewhere(at) || self.has_object(at);
        match self.before(at) {
            None => self.tokens[at].before == Break::Sentence && leads,
            Some(before)
                if self.begins_noun(before) || before == "to" || self.words.be.contains(before) =>
            {
                false
            }
            Some(before) => match self.subject(at) {
                Some(Number::Plural) => true,
                _ if self.words.pronoun.contains(before) => true,
                None if !is_plural(before) && !self.is_joined(at) => false,
                _ => !verb.ambiguous || leads,
            },
        }
    }

    /// "is thrown into", "being painted", "he jumped", "a girl picked up a stone".
    fn is_past(&self, at: usize) -> bool {
        let verb = self.words.verb(self.lower[at]);
        let Some(before) = self.before(at).filter(|_| verb.motion.past) else {
            return false;
        };
        let leads = self.leads_somewhere(at);
        let has_object = self.has_object(at);
        if self.words.get.contains(before) || before == "being" {
            true
        } else if self.words.be.contains(before) {
            leads || self.next(at) == Some("by")
        } else if self.words.pronoun.contains(before) {
            true
        } else if self.subject(at).is_some() {
            leads || has_object
        } else {
            leads && is_plural(before) || self.words.join.contains(before) && has_object
        }
    }

    /// The word before, past a few adverbs; none across a comma or a full stop.
    fn before(&self, at: usize) -> Option<&str> {
        self.place_before(at).map(|place| self.lower[place])
    }

    fn place_before(&self, mut at: usize) -> Option<usize> {
        for _ in 0..4 {
            if at == 0 || self.tokens[at].before != Break::None {
                return None;
            }
            at -= 1;
            let word = self.lower[at];
            let adverb = word.ends_with("ly") && !["fly", "family", "butterfly"].contains(&word);
            if !adverb && !["also", "just", "now", "all", "still"].contains(&word) {
                return Some(at);
            }
        }
        None
    }

    /// The word after; none across a comma or a full stop.
    fn next(&self, at: usize) -> Option<&str> {
        let next = self.tokens.get(at + 1)?;
        (next.before == Break::None).then_some(self.lower[at + 1])
    }

    fn follows_possessive(&self, at: usize) -> bool {
        self.place_before(at)
            .is_some_and(|place| self.tokens[place].possessive)
    }

    /// Number of the word before, if it is one that moves or acts.
    fn subject(&self, at: usize) -> Option<Number> {
        let place = self.place_before(at)?;
        let word = self.lower[place];
        let number = match word {
            "who" | "that" | "which" => Some(Number::Singular),
            _ => self.words.subject(word).or_else(|| {
                let many = word.ends_with("men");
                let one = word.ends_with("man");
                (many || one).then_some(if many {
                    Number::Plural
                } else {
                    Number::Singular
                })
            }),
        };
        number.filter(|_| !self.tokens[place].possessive)
    }

    /// Whether what stands before is one thing, by its article: "a small yellow star", so that a form in -s is a verb.
    fn follows_one(&self, at: usize) -> bool {
        let words = self.words;
        (at.saturating_sub(6)..at)
            .rev()
            .take_while(|&place| self.tokens[place + 1].before == Break::None)
            .map(|place| self.lower[place])
            .take_while(|word| {
                ![&words.preposition, &words.join, &words.be]
                    .iter()
                    .any(|set| set.contains(word))
            })
            .skip(1)
            .any(|word| ["a", "an", "one", "each", "every", "another"].contains(&word))
    }

    /// Whether the word before can only be a subject: a pronoun, or one thing.
    fn follows_sure_subject(&self, at: usize) -> bool {
        self.before(at)
            .is_some_and(|word| self.words.pronoun.contains(word))
            || self.follows_one(at)
    }

    /// Whether who does it, or a form of "be", stands before.
    fn follows_actor(&self, at: usize) -> bool {
        self.subject(at).is_some()
            || self
                .before(at)
                .is_some_and(|word| self.words.be.contains(word))
    }

    /// Whether a participle is a noun: "the opening of a cave", "in a meeting".
    fn is_noun_of_action(&self, at: usize) -> bool {
        self.before(at)
            .is_some_and(|word| self.words.determiner.contains(word) && word != "that")
            && self.next(at).is_none_or(|next| {
                self.words.preposition.contains(next) || self.words.be.contains(next)
            })
    }

    /// Whether a noun must follow this word.
    fn begins_noun(&self, word: &str) -> bool {
        self.words.determiner.contains(word) && word != "that"
            || self.words.preposition.contains(word)
    }

    /// Whether a word for a direction follows.
    fn leads_somewhere(&self, at: usize) -> bool {
        self.next(at)
            .is_some_and(|next| self.words.direction.contains(next))
    }

    /// Whether an object with its article follows.
    fn has_object(&self, at: usize) -> bool {
        self.next(at)
            .is_some_and(|next| self.words.determiner.contains(next))
    }

    fn can_follow_verb(&self, word: &str) -> bool {
        let words = self.words;
        [
            &words.determiner,
            &words.preposition,
            &words.direction,
            &words.join,
        ]
        .iter()
        .any(|set| set.contains(word))
            || word.ends_with("ly")
    }

    /// Whether "and" or a comma joins this word to a finite verb not far before it in the sentence.
    fn is_joined(&self, at: usize) -> bool {
        let joined = self.tokens[at].before == Break::Comma
            || self
                .before(at)
                .is_some_and(|word| self.words.join.contains(word));
        joined
            && (0..at)
                .rev()
                .take(16)
                .take_while(|&place| self.tokens[place + 1].before != Break::Sentence)
                .any(|place| {
                    let verb = self.words.verb(self.lower[place]);
                    !self.silent[place]
                        && (verb.state.third || verb.motion.third && !verb.ambiguous)
                })
    }
}

/// Whether a word looks like a noun in the plural.
fn is_plural(word: &str) -> bool {
    word.len() > 3
        && word.ends_with('s')
        && !["ss", "us", "is"].iter().any(|end| word.ends_with(end))
}
