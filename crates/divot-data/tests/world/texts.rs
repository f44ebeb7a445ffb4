use std::collections::{HashMap, HashSet};

use divot_data::dataset::{Text, Turn};
use divot_data::world::{
    Asking, Colour, Motion, Object, Scene, Shape, Split, World, claims, motions,
};

use crate::world;

/// Checks that a text is English as far as that can be told.
fn assert_clean(text: &str) {
    let words: Vec<&str> = text.split(' ').collect();
    for pair in words.windows(2) {
        let vowel = pair[1].starts_with(['a', 'e', 'i', 'o', 'u']);
        let wrong = match pair[0] {
            "a" | "A" => vowel,
            "an" | "An" => !vowel,
            word => word == pair[1],
        };
        assert!(!wrong, "{text:?}");
    }
    assert!(
        text.starts_with(|c: char| c.is_ascii_uppercase()),
        "{text:?}"
    );
    assert!(text.ends_with(['.', '?']), "{text:?}");
    assert!(
        !text.contains("  ") && !text.contains(" .") && !text.contains(['*', '{']),
        "{text:?}"
    );
}

#[test]
fn captions_say_what_is_there() {
    let mut captions = HashSet::new();
    for split in [Split::Train, Split::Test] {
        let world = world(split);
        for index in 0..3000 {
            let scene = world.scene(index);
            let caption = world.caption(index);
            assert_clean(&caption);
            let claims = claims(&caption);
            assert_eq!(claims.len(), scene.objects.len(), "{caption}");
            for object in &scene.objects {
                assert!(
                    claims.iter().any(|claim| claim.is_true_of(object)),
                    "{caption}: {object:?}"
                );
            }
            captions.insert(caption);
        }
    }
    assert!(
        captions.len() > 4500,
        "only {} captions differ",
        captions.len()
    );
}

#[test]
fn claims_that_are_wrong_are_found() {
    let scene = world(Split::Train).scene(0);
    let object = &scene.objects[0];
    let wrong = |change: &dyn Fn(&mut Object)| {
        let mut other = object.clone();
        change(&mut other);
        other
    };
    let claim = &claims(&world(Split::Train).caption(0))[0];
    assert!(claim.is_true_of(object));
    let other = |&shape: &Shape| shape != object.shape;
    let shape = Shape::ALL.into_iter().find(other).unwrap();
    assert!(!claim.is_true_of(&wrong(&|object| object.shape = shape)));
    let next = Motion::ALL[(object.motion as usize + 1) % 16];
    assert!(!claim.is_true_of(&wrong(&|object| object.motion = next)));
    assert!(!claim.is_true_of(&wrong(&|object| object.then = Some(Motion::Grow))));
    assert!(claims("A dog runs. The circle moves up.").is_empty());
    assert_eq!(
        motions("It moves up and to the left, then it SPINS in place!"),
        [Motion::UpLeft, Motion::Spin]
    );
}

#[test]
fn stories_are_of_one_character() {
    for index in 0..1000 {
        let world = world(Split::Train);
        let story = world.story(index);
        let Text::Story {
            instruction,
            scenes,
            ending,
        } = world.story_text(index)
        else {
            panic!("a story is one");
        };
        let instruction = instruction.unwrap();
        assert_eq!((story.scenes.len(), scenes.len()), (3, 3));
        let hero = &story.scenes[0].objects[0];
        for (scene, text) in story.scenes.iter().zip(&scenes) {
            let [object] = &scene.objects[..] else {
                panic!("a character is alone");
            };
            assert_eq!((object.shape, object.colour), (hero.shape, hero.colour));
            assert_eq!(motions(text), [object.motion], "{text}");
            assert_clean(text);
        }
        for text in [&instruction, &ending] {
            assert_clean(text);
        }
        for text in [&instruction, &scenes[0]] {
            let claims = claims(text);
            assert_eq!(
                (claims.len(), claims[0].shape, claims[0].colour),
                (1, hero.shape, hero.colour)
            );
            assert!(text.contains(&story.name));
        }
    }
}

/// The answers that a question has in a scene, as a text would say them in the middle of a sentence.
fn answers(question: &str, scene: &Scene) -> Vec<String> {
    let words: Vec<&str> = question.split(|c: char| !c.is_alphabetic()).collect();
    let has = |name: &str| words.contains(&name);
    let article = |name: &str| match name.starts_with(['o']) {
        true => format!("an {name}"),
        false => format!("a {name}"),
    };
    if question.starts_with("How many") {
        return vec![["one", "two"][scene.objects.len() - 1].to_owned()];
    }
    if question.starts_with("What is in") || question.starts_with("What do you see") {
        let looks = scene
            .objects
            .iter()
            .map(|o| article(&format!("{} {}", o.colour.name(), o.shape.name())));
        return vec![looks.collect::<Vec<_>>().join(" and ")];
    }
    // The objects that the question may mean.
    let named = |object: &&Object| {
        let colour = Colour::ALL.iter().find(|c| has(c.name()));
        let shape = Shape::ALL.iter().find(|s| has(s.name()));
        colour.is_none_or(|&c| c == object.colour) && shape.is_none_or(|&s| s == object.shape)
    };
    let meant: Vec<&Object> = scene.objects.iter().filter(named).collect();
    assert_eq!(meant.len(), 1, "{question} of {scene:?}");
    let object = meant[0];
    let motion = if has("last") {
        object.then.unwrap()
    } else {
        object.motion
    };
    match words[0] {
        "What" if has("shape") => vec![article(object.shape.name())],
        "What" | "Which" if has("colour") => vec![object.colour.name().to_owned()],
        "How" => vec![object.size.name().to_owned()],
        "What" | "Where" | "In" => vec![format!("{motion:?}")],
        _ => panic!("{question}"),
    }
}

/// An answer in the form of [`answers`].
fn normal(answer: &str) -> String {
    let answer = answer.trim_end_matches('.');
    let moves = motions(answer);
    let whither = motions(&format!("it moves {answer}"));
    match (&moves[..], &whither[..]) {
        ([motion], _) | ([], [motion]) => format!("{motion:?}"),
        _ => answer.to_lowercase(),
    }
}

#[test]
fn answers_are_right() {
    let world = world(Split::Train);
    let mut kinds = HashSet::new();
    for index in 0..1500 {
        let scene = world.scene(index);
        for asking in [Asking::Open, Asking::Choice, Asking::Any] {
            let turns = world.questions(index, asking);
            assert!(!turns.is_empty());
            for Turn { question, answer } in turns {
                let mut lines = question.lines();
                let asked = lines.next().unwrap();
                assert_clean(asked);
                kinds.insert(asked.split(' ').take(2).collect::<Vec<_>>().join(" "));
                let right = answers(asked, &scene);
                let choices: Vec<&str> = lines
                    .filter_map(|line| line.split_once(". "))
                    .map(|(_, c)| c)
                    .collect();
                if choices.is_empty() {
                    assert_ne!(asking, Asking::Choice);
                    assert_clean(&answer);
                    assert_eq!(right, [normal(&answer)], "{question}");
                    continue;
                }
                assert_eq!(
                    choices.iter().collect::<HashSet<_>>().len(),
                    4,
                    "{question}"
                );
                let place = usize::from(answer.as_bytes()[0] - b'A');
                let fits: Vec<usize> = (0..4)
                    .filter(|&place| right == [normal(choices[place])])
                    .collect();
                assert_eq!(fits, [place], "{question} {answer}");
            }
        }
    }
    assert!(kinds.len() >= 10, "{kinds:?}");
}

/// Whoever knows how often each choice was right, and sees no clip, is right as often as chance.
#[test]
fn choices_cannot_be_guessed() {
    let world = world(Split::Train);
    let mut known: HashMap<String, [u32; 2]> = HashMap::new();
    let (mut asked, mut right) = (0u32, 0u32);
    for index in 0..12_000 {
        for Turn { question, answer } in world.questions(index, Asking::Choice) {
            let kind: String = question.split(' ').take(2).collect();
            let choices: Vec<&str> = question
                .lines()
                .filter_map(|line| line.split_once(". "))
                .map(|(_, c)| c)
                .collect();
            let key = |choice: &str| format!("{kind}: {choice}");
            let place = usize::from(answer.as_bytes()[0] - b'A');
            if index >= 8000 {
                let rate = |choice: &&str| {
                    let [right, shown] = known.get(&key(choice)).copied().unwrap_or([1, 4]);
                    f64::from(right) / f64::from(shown)
                };
                let rates: Vec<f64> = choices.iter().map(rate).collect();
                let best = (0..4)
                    .max_by(|&a, &b| rates[a].total_cmp(&rates[b]))
                    .unwrap();
                asked += 1;
                right += u32::from(best == place);
                continue;
            }
            for (number, choice) in choices.iter().enumerate() {
                let [right, shown] = known.entry(key(choice)).or_default();
                *right += u32::from(number == place);
                *shown += 1;
            }
        }
    }
    let share = f64::from(right) / f64::from(asked);
    assert!(share < 0.3, "{share} of {asked}");
}

#[test]
fn few_words_are_used() {
    let world = World {
        textures: 0.1,
        ..World::default()
    };
    let mut words = HashSet::new();
    for index in 0..3000 {
        let mut add = |text: &str| {
            words.extend(
                text.split(|c: char| !c.is_alphabetic())
                    .map(str::to_lowercase),
            );
        };
        add(&world.caption(index));
        for turn in world.questions(index, Asking::Any) {
            add(&turn.question);
            add(&turn.answer);
        }
        if let Text::Story {
            instruction,
            scenes,
            ending,
        } = world.story_text(index)
        {
            add(&instruction.unwrap());
            scenes.iter().for_each(|scene| add(scene));
            add(&ending);
        }
    }
    assert!((150..400).contains(&words.len()), "{} words", words.len());
}
