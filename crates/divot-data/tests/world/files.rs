use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use divot_data::dataset::{
    Filter, Format, Loader, LoaderConfig, MixedSource, Sample, Samples, Source, SourceConfig, Text,
    WorldConfig,
};
use divot_data::world::{Content, Counts, Oracle, Split, World, write};
use divot_data::{ClipReader, Error, metrics};
use serde_json::Value;

use crate::world;

const COUNTS: Counts = Counts {
    clips: 6,
    stories: 2,
};

fn written(world: &World, folder: &Path) {
    let mut told = Vec::new();
    let flow = write(world, folder, COUNTS, |done, total| {
        told.push((done, total));
        ControlFlow::Continue(())
    });
    assert!(flow.unwrap().is_continue());
    assert_eq!(told, (1..=12).map(|done| (done, 12)).collect::<Vec<_>>());
}

/// All files by their paths.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in ["", "clips", "stories"] {
        for file in fs::read_dir(folder.join(entry)).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() {
                files.insert(
                    path.display()
                        .to_string()
                        .replace(&folder.display().to_string(), ""),
                    fs::read(path).unwrap(),
                );
            }
        }
    }
    files
}

fn read(config: &SourceConfig) -> Vec<Sample> {
    let source = Source::open(config, &ClipReader::of_size(64)).unwrap();
    (0..source.len())
        .map(|index| source.read(index, &mut || 0.5).unwrap())
        .collect()
}

#[test]
fn a_world_is_written_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
    let world = World {
        textures: 0.3,
        ..world(Split::Train)
    };
    written(&world, &one);
    written(&world, &other);
    assert!(
        contents(&one) == contents(&other),
        "the same world is other files"
    );
    let again = write(&world, &one, COUNTS, |_, _| ControlFlow::Continue(()));
    assert!(matches!(again, Err(Error::Argument(_))));

    let source = |format, name: &str| SourceConfig {
        filter: Filter {
            min_side: Some(64),
            ..Filter::default()
        },
        ..SourceConfig::new(format, one.join(name))
    };
    let captions = read(&source(Format::Captions, "captions.jsonl"));
    let questions = read(&source(Format::Questions, "questions.jsonl"));
    let stories = read(&source(Format::Story, "stories.jsonl"));
    let sprites = (0..6).filter(|&index| matches!(world.content(index), Content::Sprites(_)));
    let sprites: Vec<u64> = sprites.collect();
    assert!((1..6).contains(&sprites.len()));
    assert_eq!(
        (captions.len(), questions.len(), stories.len()),
        (6, sprites.len(), 2)
    );
    assert_eq!(read(&source(Format::Videos, "clips")).len(), 6);

    let oracle = Oracle::default();
    for (index, sample) in captions.iter().enumerate() {
        let index = index as u64;
        assert_eq!(sample.text, Text::Caption(world.caption(index)));
        let made = world.content(index).frames(64, 16);
        let psnr = metrics::mean(&made, sample.clips[0].frames(), metrics::psnr).unwrap();
        assert!(psnr > 29.0, "{psnr}");
        if let Content::Sprites(scene) = world.content(index) {
            let verdict = oracle.read(sample.clips[0].frames()).verdict(&scene);
            assert!(verdict.is_right(), "{scene:?}");
        }
    }
    assert!(
        questions
            .iter()
            .all(|sample| matches!(&sample.text, Text::Turns(turns) if turns.len() > 1))
    );
    for (index, sample) in stories.iter().enumerate() {
        assert_eq!(
            (sample.clips.len(), &sample.text),
            (3, &world.story_text(index as u64))
        );
    }

    let truth = fs::read_to_string(one.join("truth.jsonl")).unwrap();
    let truth: Vec<Value> = truth
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(truth.len(), 12);
    let first: Content = serde_json::from_value(truth[0]["truth"].clone()).unwrap();
    assert_eq!(
        (&truth[0]["video"], first),
        (&"clips/000000.mp4".into(), world.content(0))
    );
}

#[test]
fn writing_can_be_stopped_and_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(Split::Train);
    let stopped = write(&world, folder.path(), COUNTS, |done, _| match done {
        3 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(stopped.unwrap().is_break());
    assert!(!folder.path().join("captions.jsonl").exists());
    written(&world, folder.path());
}

#[test]
fn lists_of_other_data_are_not_overwritten() {
    for list in [
        "captions.jsonl",
        "questions.jsonl",
        "stories.jsonl",
        "truth.jsonl",
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(list), "mine").unwrap();
        let refused = write(&world(Split::Train), folder.path(), COUNTS, |_, _| {
            ControlFlow::Continue(())
        });
        let text = refused.unwrap_err().to_string();
        assert!(
            text.contains(list) && text.contains("another folder"),
            "{text}"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn samples_are_made_without_files() {
    let config = |text: &str| -> SourceConfig { toml::from_str(text).unwrap() };
    let captions =
        config("format = \"captions\"\nworld = { split = \"test-novel\", seed = 3, count = 10 }");
    let source = Source::open(&captions, &ClipReader::of_size(48)).unwrap();
    assert_eq!((source.len(), source.groups()[0].clone()), (10, 0..10));
    let world = World {
        seed: 3,
        size: 48,
        ..world(Split::TestNovel)
    };
    let sample = source.read(4, &mut || 0.0).unwrap();
    assert_eq!(sample.clips[0].frames(), world.scene(4).frames(48, 16));
    assert_eq!(sample.text, Text::Caption(world.caption(4)));
    let other = source.read(4, &mut || 0.3).unwrap();
    assert_eq!(other.clips, sample.clips);
    let wordings = (0..10).map(|at| source.read(4, &mut || f64::from(at) / 10.0).unwrap().text);
    let wordings: Vec<Text> = wordings.collect();
    assert!(
        wordings.iter().any(|text| *text != sample.text),
        "{wordings:?}"
    );

    let stories = read(&config("format = \"story\"\nworld = { count = 2 }"));
    assert_eq!(stories[1].clips.len(), 3);
    let questions = read(&config("format = \"questions\"\nworld = { count = 2 }"));
    assert!(matches!(&questions[0].text, Text::Turns(turns) if !turns.is_empty()));
    let texts = read(&config("format = \"texts\"\nworld = { count = 3 }"));
    for (index, sample) in texts.iter().enumerate() {
        assert_eq!(sample.clip_count(), 0);
        assert!(matches!(&sample.text, Text::Plain(text) if text.lines().count() > index));
    }
    let videos = read(&config(
        "format = \"videos\"\ntext = false\nworld = { count = 2, textures = 1.0 }",
    ));
    assert_eq!((videos[0].clips.len(), &videos[0].text), (1, &Text::None));
}

#[test]
fn batches_are_functions_of_the_step() {
    let batches = |first_step, workers| {
        let config = SourceConfig::of_world(Format::Captions, WorldConfig::default());
        let source = Source::open(&config, &ClipReader::of_size(16)).unwrap();
        let mixed = MixedSource {
            name: config.name(),
            samples: Box::new(source),
            weight: 1.0,
            batch: 3,
        };
        let config = LoaderConfig {
            first_step,
            workers,
            ..LoaderConfig::default()
        };
        let loader = Loader::new(vec![mixed], config).unwrap();
        let batches = loader.take(2).map(|batch| batch.unwrap().samples);
        batches.collect::<Vec<_>>()
    };
    let (all, later) = (batches(0, 2), batches(1, 1));
    assert_eq!(all[1], later[0]);
    assert_ne!(all[0], all[1]);
}

#[test]
fn sources_that_make_no_sense_are_refused() {
    for (text, expected) in [
        ("format = \"captions\"", "neither `path` nor `world`"),
        ("format = \"csv\"\nworld = {}", "choose one"),
        (
            "format = \"videos\"\npath = \"clips\"\nworld = {}",
            "leave out all but",
        ),
        (
            "format = \"videos\"\nmax_clips = 3\nworld = {}",
            "leave out all but",
        ),
        (
            "format = \"videos\"\nworld = { textures = 2.0 }",
            "give 0 to 1",
        ),
        (
            "format = \"questions\"\nworld = { textures = 0.5 }",
            "leave `textures` out",
        ),
        (
            "format = \"videos\"\nworld = { plain = -0.5 }",
            "give 0 to 1",
        ),
        (
            "format = \"story\"\nworld = { plain = 0.5 }",
            "leave `plain` out",
        ),
        ("format = \"videos\"\nworld = { count = 0 }", "at least 1"),
    ] {
        let config: SourceConfig = toml::from_str(text).unwrap();
        let error = Source::open(&config, &ClipReader::of_size(64))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{text}: {error}");
        assert_eq!(error.lines().count(), 1);
    }
    let misspelt: Result<SourceConfig, _> =
        toml::from_str("format = \"videos\"\nworld = { splitt = \"train\" }");
    assert!(misspelt.is_err());
}
