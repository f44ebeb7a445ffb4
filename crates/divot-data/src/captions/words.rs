//! The word lists, and the forms of the words in them.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

/// The forms of a verb that a word can be.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Forms {
    /// "run"
    pub base: bool,
    /// "runs"
    pub third: bool,
    /// "running"
    pub participle: bool,
    /// "ran", "watched", "thrown"
    pub past: bool,
}

/// What a word can be as a verb.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Verb {
    /// Forms of a verb of motion or change.
    pub motion: Forms,
    /// Forms of a verb of posture or state.
    pub state: Forms,
    /// Whether the word is as often no verb, where it is a base or a form in -s.
    pub ambiguous: bool,
}

/// Whether a noun is one or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    Singular,
    Plural,
    /// "sheep", "they": the word does not say.
    Either,
}

/// Phrases, by their first word.
#[derive(Debug)]
pub(super) struct Phrases(HashMap<&'static str, Vec<Vec<&'static str>>>);

type Set = HashSet<&'static str>;

/// All word lists. The sets are the classes of `function.txt`.
#[derive(Debug)]
pub(super) struct Words {
    verbs: HashMap<String, Verb>,
    subjects: HashMap<String, Number>,
    purposes: HashSet<String>,
    nouns_in_ing: Set,
    pub determiner: Set,
    pub preposition: Set,
    pub direction: Set,
    pub pronoun: Set,
    pub be: Set,
    pub get: Set,
    pub join: Set,
    pub negation: Set,
    pub clause: Set,
    pub hints: Phrases,
    pub events: Phrases,
    pub things: Phrases,
    pub still: Phrases,
}

pub(super) static WORDS: LazyLock<Words> = LazyLock::new(Words::new);

impl Words {
    fn new() -> Self {
        let mut verbs: HashMap<String, Verb> = HashMap::new();
        for line in lines(include_str!("words/motion.txt")) {
            let ambiguous: &[Kind] = match line.as_bytes()[0] {
                b'*' => &[Kind::Base, Kind::Third],
                b'~' => &[Kind::Base],
                _ => &[],
            };
            for (form, kind) in forms(line.trim_start_matches(['*', '~'])) {
                let verb = verbs.entry(form).or_default();
                kind.mark(&mut verb.motion);
                verb.ambiguous |= ambiguous.contains(&kind);
            }
        }
        for line in lines(include_str!("words/states.txt")) {
            for (form, kind) in forms(line) {
                kind.mark(&mut verbs.entry(form).or_default().state);
            }
        }

        let mut subjects = HashMap::new();
        for line in lines(include_str!("words/subjects.txt")) {
            let (one, many) = match line.split_once(' ') {
                Some((one, many)) => (one, many.to_owned()),
                None => (line, with_s(line)),
            };
            subjects.insert(many.clone(), Number::Plural);
            let number = if one == many {
                Number::Either
            } else {
                Number::Singular
            };
            subjects.insert(one.to_owned(), number);
        }

        let purposes = lines(include_str!("words/purposes.txt"))
            .flat_map(|noun| [noun.to_owned(), with_s(noun)])
            .collect();
        Self {
            verbs,
            subjects,
            purposes,
            determiner: class("determiner"),
            preposition: class("preposition"),
            direction: class("direction"),
            pronoun: class("pronoun"),
            be: class("be"),
            get: class("get"),
            join: class("join"),
            negation: class("negation"),
            clause: class("clause"),
            nouns_in_ing: lines(include_str!("words/nouns_in_ing.txt")).collect(),
            hints: Phrases::new(include_str!("words/hints.txt")),
            events: Phrases::new(include_str!("words/events.txt")),
            things: Phrases::new(include_str!("words/things.txt")),
            still: Phrases::new(include_str!("words/still.txt")),
        }
    }

    pub fn verb(&self, word: &str) -> Verb {
        self.verbs.get(word).copied().unwrap_or_default()
    }

    pub fn subject(&self, word: &str) -> Option<Number> {
        self.subjects.get(word).copied()
    }

    /// Whether a participle before this noun says its purpose.
    pub fn has_purpose(&self, noun: &str) -> bool {
        self.purposes.contains(noun)
    }

    pub fn is_noun_in_ing(&self, word: &str) -> bool {
        self.nouns_in_ing.contains(word)
    }
}

impl Phrases {
    fn new(list: &'static str) -> Self {
        let mut phrases: HashMap<_, Vec<Vec<_>>> = HashMap::new();
        for line in lines(list) {
            let words: Vec<&str> = line.split(' ').collect();
            phrases.entry(words[0]).or_default().push(words);
        }
        Self(phrases)
    }

    /// Number of words of the longest phrase that `words` begin with; the last may have an -s more.
    pub fn at(&self, words: &[&str]) -> usize {
        let first = words.first().copied().unwrap_or_default();
        let singular = first.strip_suffix('s').unwrap_or(first);
        [first, singular]
            .iter()
            .filter_map(|word| self.0.get(word))
            .flatten()
            .filter(|phrase| begin_with(words, phrase))
            .map(Vec::len)
            .max()
            .unwrap_or(0)
    }
}

fn begin_with(words: &[&str], phrase: &[&str]) -> bool {
    let (Some(words), Some((last, rest))) = (words.get(..phrase.len()), phrase.split_last()) else {
        return false;
    };
    let ending = words[rest.len()].strip_prefix(last);
    words[..rest.len()] == *rest && matches!(ending, Some("" | "s" | "es"))
}

/// The entries of a list.
fn lines(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The words of a class of `function.txt`.
fn class(name: &str) -> Set {
    lines(include_str!("words/function.txt"))
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        .flat_map(|words| words.split(' '))
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Base,
    Third,
    Participle,
    Past,
}

impl Kind {
    fn mark(self, forms: &mut Forms) {
        match self {
            Self::Base => forms.base = true,
            Self::Third => forms.third = true,
            Self::Participle => forms.participle = true,
            Self::Past => forms.past = true,
        }
    }
}

/// The forms of a verb: its base, those that spelling gives, and those written behind the base.
fn forms(line: &'static str) -> Vec<(String, Kind)> {
    let (base, others) = line.split_once(' ').unwrap_or((line, ""));
    let mut forms = vec![
        (base.to_owned(), Kind::Base),
        (with_s(base), Kind::Third),
        (with_ing(base), Kind::Participle),
        (with_ed(base), Kind::Past),
    ];
    forms.extend(others.split_whitespace().map(|other| {
        let kind = match other {
            _ if other.ends_with("ing") => Kind::Participle,
            _ if other.ends_with('s') => Kind::Third,
            _ => Kind::Past,
        };
        (other.to_owned(), kind)
    }));
    forms
}

fn is_vowel(letter: u8) -> bool {
    b"aeiou".contains(&letter)
}

/// Whether a word ends in y after a consonant: "carry", not "play".
fn ends_in_soft_y(word: &str) -> bool {
    matches!(word.as_bytes(), [.., before, b'y'] if !is_vowel(*before))
}

/// Whether a word of one syllable doubles its last letter: "run", "stop", "quit", not "fix", "rain" or "open".
fn doubles(word: &str) -> bool {
    let [start @ .., vowel, last] = word.as_bytes() else {
        return false;
    };
    let start = start.strip_suffix(b"qu").unwrap_or(start);
    is_vowel(*vowel)
        && !is_vowel(*last)
        && !b"wxyh".contains(last)
        && !start.iter().copied().any(is_vowel)
}

fn with_s(word: &str) -> String {
    if ends_in_soft_y(word) {
        format!("{}ies", &word[..word.len() - 1])
    } else if ["s", "x", "z", "ch", "sh", "o"]
        .iter()
        .any(|end| word.ends_with(end))
    {
        format!("{word}es")
    } else {
        format!("{word}s")
    }
}

fn with_ing(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("ie") {
        format!("{stem}ying")
    } else if doubles(word) {
        format!("{word}{}ing", &word[word.len() - 1..])
    } else {
        let keeps_e = ["ee", "oe", "ye"].iter().any(|end| word.ends_with(end));
        let stem = if keeps_e {
            word
        } else {
            word.strip_suffix('e').unwrap_or(word)
        };
        format!("{stem}ing")
    }
}

fn with_ed(word: &str) -> String {
    if ends_in_soft_y(word) {
        format!("{}ied", &word[..word.len() - 1])
    } else if word.ends_with('e') {
        format!("{word}d")
    } else if doubles(word) {
        format!("{word}{}ed", &word[word.len() - 1..])
    } else {
        format!("{word}ed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_spelled_right() {
        for (base, third, participle, past) in [
            ("carry", "carries", "carrying", "carried"),
            ("chase", "chases", "chasing", "chased"),
            ("fix", "fixes", "fixing", "fixed"),
            ("tie", "ties", "tying", "tied"),
            ("flee", "flees", "fleeing", "fled"),
            ("stop", "stops", "stopping", "stopped"),
            ("open", "opens", "opening", "opened"),
            ("begin", "begins", "beginning", "began"),
            ("cut", "cuts", "cutting", "cut"),
            ("play", "plays", "playing", "played"),
            ("go", "goes", "going", "went"),
            ("travel", "travels", "travelling", "travelled"),
        ] {
            assert!(WORDS.verb(base).motion.base, "{base}");
            assert!(WORDS.verb(third).motion.third, "{third}");
            assert!(WORDS.verb(participle).motion.participle, "{participle}");
            assert!(WORDS.verb(past).motion.past, "{past}");
        }
    }

    #[test]
    fn every_line_of_the_lists_can_match() {
        for list in [
            include_str!("words/motion.txt"),
            include_str!("words/states.txt"),
            include_str!("words/subjects.txt"),
            include_str!("words/purposes.txt"),
            include_str!("words/nouns_in_ing.txt"),
            include_str!("words/hints.txt"),
            include_str!("words/events.txt"),
            include_str!("words/things.txt"),
            include_str!("words/still.txt"),
        ] {
            let mut seen = HashSet::new();
            for line in lines(list) {
                assert!(seen.insert(line), "{line:?} is there twice");
                let word = line.strip_prefix(['*', '~']).unwrap_or(line);
                assert!(
                    word.split(' ').all(
                        |word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase())
                    ),
                    "{line:?}"
                );
            }
        }
    }
}
