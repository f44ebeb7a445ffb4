//! Caches: what is written is read, in the order of the source, and damage is told.
#![expect(
    clippy::single_range_in_vec_init,
    reason = "groups of samples are ranges"
)]

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use divot_data::ClipReader;
use divot_data::dataset::{
    Array, CacheWriter, ElementType, EpochReader, Format, Loader, LoaderConfig, Manifest, Medium,
    MixedSource, Reason, Sample, Samples, Skip, Source, SourceConfig, Stored, Text, Turn,
};
use tempfile::TempDir;

/// Samples whose arrays say which they are, and what was drawn.
struct Drawn(Vec<Range<usize>>);

impl Samples for Drawn {
    fn len(&self) -> usize {
        self.0.last().map_or(0, |group| group.end)
    }

    fn groups(&self) -> Vec<Range<usize>> {
        self.0.clone()
    }

    fn read(&self, index: usize, uniform: &mut dyn FnMut() -> f64) -> Result<Sample, Skip> {
        match index % 10 {
            7 => Err(Skip {
                key: index.to_string(),
                reason: Reason::TooShort,
                message: "is \"short\"".to_owned(),
            }),
            _ => Ok(sample(index, 1 + index % 3, uniform() as f32)),
        }
    }
}

fn sample(index: usize, clips: usize, drawn: f32) -> Sample {
    let array = |inner: &[usize], scale: f32| {
        let row: usize = inner.iter().product();
        let values = (0..clips * row).map(|at| scale * (index as f32 + at as f32 / 64.0 + drawn));
        let mut shape = vec![clips];
        shape.extend(inner);
        Array {
            shape,
            values: values.collect(),
        }
    };
    let arrays = [("a", array(&[2, 3], 1.0)), ("b", array(&[], -2.0))];
    let arrays = arrays.map(|(name, array)| (name.to_owned(), array));
    let turn = Turn {
        question: "Où?\n".to_owned(),
        answer: index.to_string(),
    };
    Sample {
        key: index.to_string(),
        medium: [Medium::Video, Medium::Image][index % 2],
        clips: Vec::new(),
        text: match index % 4 {
            0 => Text::None,
            1 => Text::Caption("a \"dog\"".to_owned()),
            2 => Text::Turns(vec![turn]),
            _ => Text::Story {
                instruction: None,
                scenes: vec!["one".to_owned(); clips],
                ending: String::new(),
            },
        },
        stored: Some(Stored {
            clips,
            arrays: BTreeMap::from(arrays),
        }),
    }
}

fn manifest(samples: &dyn Samples, draws: usize) -> Manifest {
    let arrays = ["b", "a"].map(str::to_owned).to_vec();
    Manifest {
        draws,
        groups: samples
            .groups()
            .into_iter()
            .map(|group| group.len())
            .collect(),
        ..Manifest::new(samples.len(), arrays)
    }
}

fn write(folder: &Path, groups: &[Range<usize>], draws: usize, seed: u64) {
    let manifest = manifest(&Drawn(groups.to_vec()), draws);
    let reader = EpochReader::new(Box::new(Drawn(groups.to_vec())), 0, seed);
    let mut writer = CacheWriter::open(folder, manifest, 700).unwrap();
    assert_eq!(writer.done(), 0);
    let samples = reader.samples().len();
    for number in 0..writer.total() {
        let sample = reader.read(number % samples, (number / samples) as u64);
        writer.push(&sample).unwrap();
    }
    writer.flush().unwrap();
}

fn config(folder: &Path) -> SourceConfig {
    SourceConfig::new(Format::Cache, folder)
}

fn open(folder: &Path) -> divot_data::Result<Source> {
    Source::open(&config(folder), &ClipReader::default())
}

fn batches(samples: Box<dyn Samples>, seed: u64, count: usize) -> Vec<Vec<Sample>> {
    let source = MixedSource {
        name: "a".to_owned(),
        samples,
        weight: 1.0,
        batch: 5,
    };
    let config = LoaderConfig {
        seed,
        ..LoaderConfig::default()
    };
    let loader = Loader::new(vec![source], config).unwrap();
    let batches = loader.take(count).map(|batch| batch.unwrap().samples);
    batches.collect()
}

#[test]
fn the_first_epoch_is_that_of_the_source() {
    for groups in [vec![0..40], vec![0..7, 7..20, 20..21, 21..30, 30..40]] {
        let folder = TempDir::new().unwrap();
        write(folder.path(), &groups, 1, 5);
        let cached = open(folder.path()).unwrap();
        assert_eq!((cached.len(), cached.groups()), (40, groups.clone()));
        assert_eq!(
            cached.read(17, &mut || 0.0).unwrap_err().message,
            "is \"short\""
        );
        let stored = batches(Box::new(cached), 5, 8);
        let original = batches(Box::new(Drawn(groups)), 5, 8);
        // Also what stands in for samples that cannot be used.
        assert_eq!(stored, original);
    }
}

#[test]
fn one_of_several_draws_is_taken() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), std::slice::from_ref(&(0..40)), 3, 5);
    let cached = open(folder.path()).unwrap();
    let read = |index, drawn| cached.read(index, &mut || drawn).unwrap();
    let all = [0.0, 0.4, 0.99].map(|drawn| read(11, drawn));
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
    let reader = EpochReader::new(Box::new(Drawn(vec![0..40])), 0, 5);
    for (epoch, sample) in all.into_iter().enumerate() {
        assert_eq!(sample, reader.read(11, epoch as u64).unwrap());
        assert_eq!(sample.clip_count(), 3);
    }
    let silent = SourceConfig {
        text: false,
        ..config(folder.path())
    };
    let silent = Source::open(&silent, &ClipReader::default()).unwrap();
    assert_eq!(silent.read(11, &mut || 0.0).unwrap().text, Text::None);
}

#[test]
fn half_precision_is_what_it_says() {
    for (element, error) in [
        (ElementType::F16, 1.0 / 2048.0),
        (ElementType::Bf16, 1.0 / 256.0),
    ] {
        let folder = TempDir::new().unwrap();
        let manifest = Manifest {
            element,
            ..manifest(&Drawn(vec![0..1]), 1)
        };
        let mut writer = CacheWriter::open(folder.path(), manifest, 1000).unwrap();
        let sample = sample(0, 2, 0.123);
        writer.push(&Ok(sample.clone())).unwrap();
        writer.flush().unwrap();
        let read = open(folder.path()).unwrap().read(0, &mut || 0.0).unwrap();
        let [read, expected] = [read, sample].map(|sample| sample.stored.unwrap().arrays);
        for (name, expected) in expected {
            assert_eq!(read[&name].shape, expected.shape);
            for (value, expected) in read[&name].values.iter().zip(&expected.values) {
                assert!((value - expected).abs() <= error * expected.abs());
            }
        }
    }
}

#[test]
fn samples_that_do_not_fit_are_refused() {
    let folder = TempDir::new().unwrap();
    let manifest = Manifest {
        element: ElementType::F16,
        ..manifest(&Drawn(vec![0..40]), 1)
    };
    let mut writer = CacheWriter::open(folder.path(), manifest, 1 << 20).unwrap();
    let good = sample(1, 2, 0.5);
    writer.push(&Ok(good.clone())).unwrap();
    let change = |change: &dyn Fn(&mut BTreeMap<String, Array>)| {
        let mut sample = good.clone();
        change(&mut sample.stored.as_mut().unwrap().arrays);
        sample
    };
    for (sample, what) in [
        (
            Sample {
                stored: None,
                ..good.clone()
            },
            "does not have a, b",
        ),
        (change(&|arrays| drop(arrays.remove("b"))), "does not have"),
        (
            change(&|arrays| arrays.get_mut("a").unwrap().shape = vec![2, 6]),
            "[2, 6]",
        ),
        (
            change(&|arrays| arrays.get_mut("a").unwrap().shape = vec![3, 2, 2]),
            "[3, 2, 2]",
        ),
        (
            change(&|arrays| arrays.get_mut("a").unwrap().values.truncate(11)),
            "[2, 2, 3]",
        ),
        (
            change(&|arrays| arrays.get_mut("a").unwrap().values[3] = 1e5),
            "not finite in f16",
        ),
    ] {
        let error = writer.push(&Ok(sample)).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    // A text whose line would not be read.
    let long = Sample {
        text: Text::Caption("\u{1}".repeat(1 << 18)),
        ..good
    };
    writer.push(&Ok(long)).unwrap();
    writer.flush().unwrap();
    let lines = fs::read_to_string(folder.path().join("shard-00000.jsonl")).unwrap();
    assert!(
        lines.lines().nth(1).unwrap().contains("too_much_text"),
        "{lines}"
    );
}

/// Nothing is believed that a file says of its sizes.
#[test]
fn damage_is_told() {
    let good = TempDir::new().unwrap();
    write(good.path(), std::slice::from_ref(&(0..40)), 1, 5);
    let lines = "shard-00000.jsonl";
    let arrays = "shard-00000.safetensors";
    let text = fs::read_to_string(good.path().join(lines)).unwrap();
    let bytes = fs::read(good.path().join(arrays)).unwrap();
    let manifest = fs::read_to_string(good.path().join("manifest.json")).unwrap();
    let huge = [&(1u64 << 60).to_le_bytes()[..], b"{}"].concat();
    let edited = |from: &str, to: &str| {
        assert!(manifest.contains(from), "{from} in {manifest}");
        manifest.replace(from, to).into_bytes()
    };
    for (name, content, what) in [
        ("manifest.json", b"{".to_vec(), "is damaged"),
        (
            "manifest.json",
            edited("\"version\": 1", "\"version\": 2"),
            "of version 2",
        ),
        (
            "manifest.json",
            edited("\"samples\": 40", "\"samples\": 41"),
            "contradicts",
        ),
        (
            "manifest.json",
            edited("\"draws\": 1", "\"draws\": 2"),
            "40 of 80",
        ),
        (
            "manifest.json",
            edited("\"draws\": 1", "\"draws\": 18446744073709551615"),
            "contradicts",
        ),
        (
            "manifest.json",
            edited("\"a\"", "\"c\""),
            "has other arrays",
        ),
        (arrays, Vec::new(), "cannot be read"),
        (arrays, huge, "no shard of a cache"),
        (arrays, bytes[..40].to_vec(), "truncated"),
        (arrays, bytes[..bytes.len() - 1].to_vec(), "truncated"),
        (
            arrays,
            [&bytes[..], b"more"].concat(),
            "truncated or damaged",
        ),
        (lines, Vec::new(), "of 40"),
    ] {
        let original = fs::read(good.path().join(name)).unwrap();
        fs::write(good.path().join(name), content).unwrap();
        let error = open(good.path()).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        // What the manifest says otherwise is noticed at the first shard.
        let named = error.contains(name) || what.contains("of ") || what == "has other arrays";
        assert!(named, "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        fs::write(good.path().join(name), original).unwrap();
    }
    // A line that is wrong costs its sample only.
    for (from, to) in [
        ("\"clips\":1", "\"clips\":18446744073709551615"),
        ("\"row\":0", "\"row\":100000"),
        ("\"clips\":1", "\"clips\":0"),
        ("{\"key\"", "{\"kex\""),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        fs::write(good.path().join(lines), changed).unwrap();
        let cached = open(good.path()).unwrap();
        assert_eq!(
            cached.read(0, &mut || 0.0).unwrap_err().reason,
            Reason::Malformed
        );
        cached.read(1, &mut || 0.0).unwrap();
    }
    fs::write(good.path().join(lines), &text).unwrap();
    // A file that changes while it is used.
    let cached = open(good.path()).unwrap();
    fs::write(good.path().join(arrays), &bytes[..100]).unwrap();
    assert_eq!(
        cached.read(0, &mut || 0.0).unwrap_err().reason,
        Reason::Changed
    );
    fs::remove_file(good.path().join(arrays)).unwrap();
    assert_eq!(
        cached.read(0, &mut || 0.0).unwrap_err().reason,
        Reason::Missing
    );
}
