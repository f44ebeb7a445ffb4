//! Whether what was said is right.
//!
//! Rules are lenient about words and strict about facts: case, punctuation and articles do not count, nor does the order
//! of objects or which of the world's phrases names a motion. Everything else does.

use divot_data::dataset::Turn;
use divot_data::world::{Asking, Motion, Reading, Scene, World, claims, motions};

/// Kinds of questions, in the order of tables.
pub const KINDS: [&str; 8] = [
    "what is there",
    "which shape",
    "which colour",
    "how many",
    "how big",
    "where to",
    "what it does",
    "what first, what last",
];

/// The kind of a question of the world, as its place in [`KINDS`].
pub fn kind(question: &str) -> Option<usize> {
    let question = question.lines().next()?;
    let begins = |words: &str| question.starts_with(words);
    let name = if begins("What shape") {
        "which shape"
    } else if begins("What is in") || begins("What do you see") {
        "what is there"
    } else if begins("What colour") || begins("Which colour") {
        "which colour"
    } else if begins("How many") {
        "how many"
    } else if begins("How big") {
        "how big"
    } else if begins("Where does") || begins("In which direction") {
        "where to"
    } else if begins("What does") && (question.ends_with("first?") || question.ends_with("last?")) {
        "what first, what last"
    } else if begins("What does") && question.ends_with(" do?") {
        "what it does"
    } else {
        return None;
    };
    KINDS.iter().position(|kind| *kind == name)
}

/// How many choices a question has, if any.
pub fn choices(question: &str) -> Option<usize> {
    let letters = ["A. ", "B. ", "C. ", "D. "];
    let is_choice = |line: &&str| letters.iter().any(|letter| line.starts_with(letter));
    let count = question.lines().skip(1).filter(is_choice).count();
    (count > 0).then_some(count)
}

/// Whether an answer is the right one.
///
/// With choices, it is the letter and nothing else. Without, it is in the same words, or claims the same objects to do
/// the same.
pub fn is_right(turn: &Turn, answer: &str) -> bool {
    if choices(&turn.question).is_some() {
        return letters(answer) == letters(&turn.answer);
    }
    normal(answer) == normal(&turn.answer) || claims_the_same(&turn.answer, answer)
}

fn letters(text: &str) -> String {
    let letters = text.chars().filter(|letter| letter.is_alphanumeric());
    letters.collect::<String>().to_uppercase()
}

/// The words of an answer, without articles.
pub fn normal(text: &str) -> Vec<String> {
    let words = text.split(|letter: char| !letter.is_alphanumeric());
    let words = words.map(str::to_lowercase);
    let is_word = |word: &String| !word.is_empty() && !matches!(&**word, "a" | "an" | "the");
    words.filter(is_word).collect()
}

fn claims_the_same(one: &str, other: &str) -> bool {
    let [one, other] = [one, other].map(|text| (looks(text), does(text)));
    one == other && (!one.0.is_empty() || !one.1.is_empty())
}

/// Colours and shapes of the objects of a text.
fn looks(text: &str) -> Vec<(&'static str, &'static str)> {
    let claims = claims(text).into_iter();
    let mut looks: Vec<_> = claims
        .map(|claim| (claim.colour.name(), claim.shape.name()))
        .collect();
    looks.sort_unstable();
    looks
}

/// What is done, whether a whole sentence says it or only a direction.
fn does(text: &str) -> Vec<Motion> {
    match motions(text) {
        does if does.is_empty() => motions(&format!("it moves {text}")),
        does => does,
    }
}

/// How a caption compares with the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// Objects that are there, and those of which the caption says colour, shape and motion as they are.
    pub objects: usize,
    /// Of these, those that are described.
    pub described: usize,
    /// Whether all that is claimed is true, of every object.
    pub right: bool,
}

impl Described {
    /// Compares a caption with the truth.
    pub fn of(caption: &str, scene: &Scene) -> Self {
        let claims = claims(caption);
        let objects = &scene.objects;
        let is_described = |object: &&_| claims.iter().any(|claim| claim.is_true_of(object));
        let described = objects.iter().filter(is_described).count();
        let is_true =
            |claim: &divot_data::world::Claim| objects.iter().any(|it| claim.is_true_of(it));
        Self {
            objects: objects.len(),
            described,
            right: described == objects.len() && claims.iter().all(is_true),
        }
    }
}

/// Whether a scene's text says what its clip shows: the motion of its only object, and colour and shape where it names
/// them. A text that says no motion does not.
pub fn tells(text: &str, seen: &Reading) -> bool {
    let [seen] = &seen.objects[..] else {
        return false;
    };
    let does: Vec<Motion> = [Some(seen.motion), seen.then]
        .into_iter()
        .flatten()
        .collect();
    let claims = claims(text);
    let mut claims = claims.iter();
    motions(text) == does && claims.all(|it| it.colour == seen.colour && it.shape == seen.shape)
}

/// The most frequent answer of training to each kind of open question: what is right without a look at the clip.
pub fn usual_answers() -> [Vec<String>; KINDS.len()] {
    let world = World::default();
    let mut counts: [std::collections::BTreeMap<Vec<String>, usize>; KINDS.len()] =
        Default::default();
    for number in 0..2000 {
        for turn in world.questions(number, Asking::Open) {
            if let Some(kind) = kind(&turn.question) {
                *counts[kind].entry(normal(&turn.answer)).or_default() += 1;
            }
        }
    }
    counts.map(|counts| {
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        most.map(|(answer, _)| answer).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::held_out::held_out;
    use super::*;

    fn turn(question: &str, answer: &str) -> Turn {
        Turn {
            question: question.to_owned(),
            answer: answer.to_owned(),
        }
    }

    #[test]
    fn wording_does_not_count_and_facts_do() {
        let open = |right: &str, said: &str| is_right(&turn("What?", right), said);
        assert!(open("A red circle.", "a Red circle"));
        assert!(open("An orange ring.", "orange ring"));
        assert!(open(
            "A red circle and a blue star.",
            "A blue star and a red circle."
        ));
        assert!(open("It moves up.", "It rises."));
        assert!(open("To the left.", "It drifts to the left."));
        assert!(open("One.", "one"));
        for (right, said) in [
            ("A red circle.", "A red square."),
            ("A red circle.", "A red circle and a blue star."),
            (
                "A red circle and a blue star.",
                "A red star and a blue circle.",
            ),
            ("It moves up.", "It moves up and to the left."),
            ("It moves up.", "It moves up, then it moves down."),
            ("To the left.", "To the right."),
            ("One.", "Two."),
            ("Small.", "Medium."),
            ("Red.", ""),
        ] {
            assert!(!open(right, said), "{said:?} passes for {right:?}");
        }
        let choice =
            "What colour is it?\nA. red\nB. blue\nC. pink\nD. cyan\nAnswer with the letter.";
        assert_eq!(choices(choice), Some(4));
        let chosen = |said: &str| is_right(&turn(choice, "A"), said);
        assert!(chosen("A") && chosen("a.") && chosen(" (A)"));
        assert!(!chosen("B") && !chosen("A red one") && !chosen("AB") && !chosen(""));
    }

    /// Every question of the world has a kind. True answers are right, and those to other clips are as often right as
    /// chance has it.
    #[test]
    fn the_truth_is_right_and_shuffled_answers_are_not() {
        let clips = held_out(400, 64).unwrap();
        let usual = usual_answers();
        let (mut shuffled, mut guessed) = ([[0.0; 2]; 2], [0.0; 2]);
        for (number, asking) in [Asking::Choice, Asking::Open].into_iter().enumerate() {
            let turns = clips
                .iter()
                .flat_map(|it| it.world.questions(it.number, asking));
            let turns: Vec<Turn> = turns.collect();
            for (place, turn) in turns.iter().enumerate() {
                let kind = kind(&turn.question).unwrap_or_else(|| panic!("{}", turn.question));
                assert_eq!(choices(&turn.question).is_some(), number == 0);
                assert!(is_right(turn, &turn.answer), "{turn:?}");
                // An answer of the same kind, of another clip.
                let alike = turns.iter().skip(place + 10);
                let mut alike = alike.filter(|it| self::kind(&it.question) == Some(kind));
                if let Some(other) = alike.next() {
                    shuffled[number][0] += f64::from(u8::from(is_right(turn, &other.answer)));
                    shuffled[number][1] += 1.0;
                }
                if number == 1 {
                    guessed[0] += f64::from(u8::from(is_right(turn, &usual[kind].join(" "))));
                    guessed[1] += 1.0;
                }
            }
        }
        let [choice, open] = shuffled.map(|[right, of]| right / of);
        assert!((0.2..0.3).contains(&choice), "{choice} of choices");
        let usual = guessed[0] / guessed[1];
        assert!(
            open < usual + 0.02,
            "{open} of open questions, {usual} by guessing"
        );
        assert!((0.1..0.35).contains(&usual), "{usual} by guessing");
    }

    #[test]
    fn captions_are_right_of_their_clips_alone() {
        let clips = held_out(200, 64).unwrap();
        let mut passed = 0;
        for (place, clip) in clips.iter().enumerate() {
            let caption = clip.world.caption(clip.number);
            let described = Described::of(&caption, &clip.scene());
            assert!(described.right, "{caption}");
            assert_eq!(described.described, described.objects);
            let other = &clips[(place + 1) % clips.len()];
            passed += usize::from(Described::of(&caption, &other.scene()).right);
        }
        assert!(passed <= 2, "{passed} captions pass for others");
        let scene = clips[0].scene();
        assert!(!Described::of("", &scene).right);
        // One true sentence and one false.
        let caption = clips[0].world.caption(clips[0].number);
        let more = format!("{caption} A cyan heart stays still. A red star stays still.");
        assert!(!Described::of(&more, &scene).right);
    }
}
