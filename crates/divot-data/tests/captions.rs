//! The rules that find captions of change, on captions that were labelled by hand.
//!
//! `cargo test --release -p divot-data --test captions -- --nocapture` prints the scores.

use std::collections::HashSet;

use divot_data::captions::{Reason, is_dynamic, judge};
use divot_data::world::{Motion, Split, World};

/// Lines of `split`, `label` and `caption`. The labels are older than the rules; the rules were made with the half
/// `tune` at hand.
const LABELLED: &str = include_str!("data/dynamic_captions.tsv");

fn labelled(split: &str) -> Vec<(bool, &'static str)> {
    LABELLED
        .lines()
        .skip(1)
        .map(|line| {
            let mut cells = line.splitn(3, '\t');
            let mut cell = || cells.next().expect("three cells");
            (cell(), cell(), cell())
        })
        .filter(|(of, ..)| *of == split)
        .map(|(_, label, caption)| match label {
            "dynamic" => (true, caption),
            "static" => (false, caption),
            _ => panic!("{label:?} is no label"),
        })
        .collect()
}

/// Precision and recall in percent.
fn score(split: &str) -> (f64, f64) {
    let captions = labelled(split);
    let count = |label: bool, judged: bool| {
        let is = |(of, caption): &&(bool, &str)| *of == label && is_dynamic(caption) == judged;
        captions.iter().filter(is).count()
    };
    let (right, wrong, missed) = (count(true, true), count(false, true), count(true, false));
    let percent = |of: usize| 100.0 * right as f64 / (right + of) as f64;
    let scores = (percent(wrong), percent(missed));
    println!(
        "{split}: {} captions, {right} found, {wrong} wrong, {missed} missed: precision {:.1} %, recall {:.1} %",
        captions.len(),
        scores.0,
        scores.1
    );
    scores
}

#[test]
fn the_list_has_two_halves_of_different_captions() {
    let halves = [labelled("tune"), labelled("held-out")];
    for half in &halves {
        assert_eq!(half.len(), 150);
        assert_eq!(half.iter().filter(|(dynamic, _)| *dynamic).count(), 75);
    }
    let captions: HashSet<_> = halves
        .iter()
        .flatten()
        .map(|(_, caption)| caption.to_lowercase())
        .collect();
    assert_eq!(captions.len(), 300);
}

#[test]
fn captions_of_change_are_found() {
    let (precision, recall) = score("tune");
    assert!(precision >= 98.0 && recall >= 97.0);
    let (precision, recall) = score("held-out");
    assert!(precision >= 94.0 && recall >= 94.0);
}

/// All captions of the synthetic world name what moves, and how; where all objects rest, nothing changes.
#[test]
fn captions_of_the_synthetic_world_are_found() {
    let world = World {
        split: Split::Train,
        ..World::default()
    };
    let (mut still, mut wrong) = (0, Vec::new());
    for index in 0..2000 {
        let moves = world
            .scene(index)
            .objects
            .iter()
            .any(|object| object.motion != Motion::Still);
        still += usize::from(!moves);
        let caption = world.caption(index);
        if is_dynamic(&caption) != moves {
            wrong.push(format!("{caption} ({moves}): {}", judge(&caption)));
        }
    }
    println!(
        "synthetic world: {} of 2000 wrong, {still} still: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(20)]
    );
    assert!(still > 0);
    assert!(wrong.is_empty());
}

#[test]
fn the_same_word_is_a_verb_or_a_noun() {
    for (dynamic, still) in [
        (
            "A man runs through the park",
            "A pair of running shoes in the park",
        ),
        ("She waves at the camera", "Sea waves, top view"),
        ("A woman cuts a cake", "Cuts of meat on a table"),
        ("A mason building a wall", "The building is old"),
        ("Painting a wall", "A painting on a wall"),
        ("Cars are parking", "A parking lot full of cars"),
        ("The lights flicker", "Traffic lights in the city"),
        ("Two girls dance in a studio", "A dance studio with mirrors"),
        (
            "A train leaves the station",
            "A train with yellow leaves on its roof",
        ),
        ("Leaves are falling", "Fall colors in a forest"),
        ("A cup is thrown into the sea", "A broken cup on a beach"),
        ("Onions are being chopped", "A bowl of chopped onions"),
        (
            "A girl dances next to a statue",
            "A statue of a girl dancing",
        ),
        ("He is moving", "He is not moving"),
        ("The camera pans to the left", "Pans on a stove"),
        ("He opens a book", "An open book"),
        ("A man stands and waves", "A man stands near waves"),
        ("zoom in on a face", "close up of a face"),
        ("He's swimming", "The swimmer's goggles"),
        ("Will the cat jump? The cat jumps.", "Will Smith at a gala"),
        ("MAN WALKING A DOG", "A MAN WITH A DOG"),
        ("Man Walks His Dog In The Park", "Dog Park Sign"),
    ] {
        assert!(is_dynamic(dynamic), "{dynamic}: {}", judge(dynamic));
        assert!(!is_dynamic(still), "{still}: {}", judge(still));
    }
}

#[test]
fn the_words_that_decided_are_named() {
    let reasons = |caption| -> Vec<_> {
        judge(caption)
            .evidence
            .into_iter()
            .map(|evidence| (evidence.words, evidence.reason))
            .collect()
    };
    assert_eq!(
        reasons(
            "Time-Lapse: a girl is yodelling until a stone is thrown into the lake, then she waves."
        ),
        [
            ("Time Lapse".to_owned(), Reason::Event),
            ("yodelling".to_owned(), Reason::Progressive),
            ("until".to_owned(), Reason::Hint),
            ("thrown".to_owned(), Reason::Past),
            ("then".to_owned(), Reason::Event),
            ("waves".to_owned(), Reason::Finite),
        ]
    );
    let judgement = judge("A lamp while a lamp, until a lamp");
    assert_eq!((judgement.score(), judgement.is_dynamic()), (1, false));
    assert_eq!(judge("a lamp").to_string(), "static (0)");
}

#[test]
fn any_text_is_judged() {
    for text in [
        "",
        " ",
        "'",
        "’s",
        "'re",
        "s's's",
        "-ing",
        "ing",
        "İ’s İNG'RE",
        "ﬁ’s",
        "日本語の字幕",
        "走る’re",
        "\u{0}\u{fffd}",
        "🏃🏽‍♀️ running",
    ] {
        let _ = judge(text);
    }
    for word in [
        "slowly ",
        "waves, ",
        "and waves ",
        "photo of ",
        "not ",
        "running shoes ",
        "'s",
        "a’",
        "who's ",
    ] {
        let text = word.repeat(200_000);
        let _ = judge(&text);
    }
}
