use std::collections::HashSet;

use divot_data::world::{Colour, Content, Motion, Object, Pattern, Shape, Split, World};

use crate::world;

const SPLITS: [Split; 5] = [
    Split::Train,
    Split::Validation,
    Split::Test,
    Split::TestSeen,
    Split::TestNovel,
];

#[test]
fn samples_are_functions_of_split_seed_and_number() {
    let mut seen = HashSet::new();
    for split in SPLITS {
        for seed in [0, 1] {
            let world = World {
                seed,
                textures: 0.3,
                ..world(split)
            };
            for index in 0..20 {
                let content = world.content(index);
                assert_eq!(content, world.clone().content(index));
                let frames = content.frames(world.size, world.frames);
                assert_eq!(frames, content.frames(world.size, world.frames));
                let first = frames[0].rgb.clone();
                assert!(
                    seen.insert(first),
                    "{split:?} {seed} {index} is another's twin"
                );
            }
        }
    }
}

#[test]
fn the_truth_says_all_that_is_seen() {
    let world = World {
        textures: 0.5,
        ..World::default()
    };
    for index in 0..10 {
        let content = world.content(index);
        let json = serde_json::to_string(&content).unwrap();
        let read: Content = serde_json::from_str(&json).unwrap();
        assert_eq!(read.frames(64, 4), content.frames(64, 4), "{json}");
    }
}

#[test]
fn a_share_of_scenes_is_plain() {
    let all = World {
        plain: 1.0,
        ..World::default()
    };
    let half = World {
        plain: 0.5,
        ..World::default()
    };
    let mut plain = 0;
    for index in 0..200 {
        let scene = World::default().scene(index);
        let found = all.scene(index);
        assert_eq!(found.background.pattern, Pattern::Plain);
        assert_eq!(
            [&found.objects, &half.scene(index).objects],
            [&scene.objects; 2]
        );
        assert_eq!(found.camera, scene.camera);
        plain += usize::from(half.scene(index).background.pattern == Pattern::Plain);
    }
    // Half of them, and one in eight of the others.
    assert!((90..140).contains(&plain), "{plain} of 200");
}

#[test]
fn held_out_combinations_are_only_in_tests() {
    let held_out = |split: Split, index: u64| {
        let scene = world(split).scene(index);
        let story = world(split).story(index);
        let told = story
            .scenes
            .iter()
            .any(|scene| scene.objects[0].is_held_out());
        [scene.objects.iter().any(Object::is_held_out), told]
    };
    for split in [Split::Train, Split::Validation, Split::TestSeen] {
        assert!((0..2000).all(|index| held_out(split, index) == [false; 2]));
    }
    assert!((0..500).all(|index| held_out(Split::TestNovel, index) == [true; 2]));
    let mixed: Vec<_> = (0..500)
        .map(|index| held_out(Split::Test, index)[0])
        .collect();
    assert!(mixed.contains(&true) && mixed.contains(&false));
}

#[test]
fn training_sees_every_pair_of_what_it_never_sees_together() {
    let mut colours = HashSet::new();
    let mut motions = HashSet::new();
    for object in (0..4000).flat_map(|index| world(Split::Train).scene(index).objects) {
        colours.insert((object.shape, object.colour));
        motions.insert((object.shape, object.motion));
    }
    assert_eq!(colours.len(), Shape::ALL.len() * Colour::ALL.len());
    // All but discs and rings that spin.
    assert_eq!(motions.len(), Shape::ALL.len() * Motion::ALL.len() - 2);
}

#[test]
fn objects_stay_apart_and_in_sight() {
    for index in 0..100 {
        let mut scene = world(Split::Test).scene(index);
        scene.camera.noise = 0.0;
        scene.background.contrast = 0.0;
        let bare = {
            let mut bare = scene.clone();
            bare.objects.clear();
            bare.frames(64, 5)
        };
        for (frame, bare) in scene.frames(64, 5).iter().zip(&bare) {
            let border = (0..64).flat_map(|at| [(at, 0), (at, 63), (0, at), (63, at)]);
            // A shadow may reach the border; an object, which has colour, may not.
            let grey =
                |[red, green, blue]: [u8; 3]| red.max(green).max(blue) - red.min(green).min(blue);
            for (x, y) in border {
                let (with, without) = (frame.pixel(x, y), bare.pixel(x, y));
                assert!(
                    grey(with) <= grey(without) + 2,
                    "{index} at {x}, {y}: {with:?} {without:?}"
                );
            }
        }
        if let [one, other] = &scene.objects[..] {
            assert!(!one.colour.is_near(other.colour));
        }
    }
}

#[test]
fn sizes_and_lengths_are_free() {
    let scene = world(Split::Train).scene(3);
    let frames = scene.frames(96, 24);
    assert_eq!(
        (frames.len(), frames[0].width, frames[0].height),
        (24, 96, 96)
    );
    for wrong in [
        World {
            size: 8,
            ..World::default()
        },
        World {
            frames: 1,
            ..World::default()
        },
        World {
            fps: f64::NAN,
            ..World::default()
        },
        World {
            textures: 1.5,
            ..World::default()
        },
    ] {
        assert!(wrong.check().is_err(), "{wrong:?}");
    }
}
