//! The memory of a loader does not grow with the number of samples. This is the only test of its process, whose
//! peak it compares.

#![cfg(target_os = "linux")]

use std::fs;

use divot_data::dataset::{
    Filter, Format, Loader, LoaderConfig, MixedSource, Source, SourceConfig,
};
use divot_data::{ClipReader, Frame, write_gif, write_mp4, write_png};
use tempfile::TempDir;

const BATCH: usize = 10;
/// Side of the frames that are read. Those of a sample take 48 KiB, so 171 samples that are kept are too many.
const CUT: usize = 32;
/// Most that the peak may grow from the samples that warm up to the last one, in KiB.
const GROWTH: u64 = 8 << 10;

/// Peak memory of this process in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap()
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .unwrap()
}

/// A moving picture.
fn frames(count: usize) -> Vec<Frame> {
    let value = |i: usize, number: usize| ((i * 7 + i * i / 97 + number * 5) % 256) as u8;
    (0..count)
        .map(|number| {
            Frame::new(64, 48, (0..64 * 48 * 3).map(|i| value(i, number)).collect()).unwrap()
        })
        .collect()
}

#[test]
fn a_thousand_samples_take_no_more_memory_than_the_first_hundreds() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("videos")).unwrap();
    let mut archive = tar::Builder::new(fs::File::create(path("a.tar")).unwrap());
    for number in 0..6 {
        let frames = frames(16 + 3 * number);
        write_mp4(path(&format!("videos/{number}.mp4")), &frames, 8.0).unwrap();
        write_gif(path("videos/a.gif"), &frames, 8.0).unwrap();
        write_png(path("a.png"), &frames[0]).unwrap();
        for name in [
            format!("videos/{number}.mp4"),
            "a.png".into(),
            "videos/a.gif".into(),
        ] {
            let ending = name.rsplit_once('.').unwrap().1;
            let key = format!("{number}-{ending}");
            archive
                .append_path_with_name(path(&name), format!("{key}.{ending}"))
                .unwrap();
            fs::write(path("a.txt"), "it moves").unwrap();
            archive
                .append_path_with_name(path("a.txt"), format!("{key}.txt"))
                .unwrap();
        }
    }
    archive.finish().unwrap();
    fs::write(path("videos/broken.mp4"), "not a video").unwrap();
    let sources =
        [(Format::Videos, "videos"), (Format::Webdataset, "a.tar")].map(|(format, name)| {
            let mut config = SourceConfig::new(format, path(name));
            config.filter = Filter {
                min_side: Some(1),
                ..Filter::default()
            };
            MixedSource {
                name: name.into(),
                samples: Box::new(Source::open(&config, &ClipReader::of_size(CUT)).unwrap()),
                weight: 1.0,
                batch: BATCH,
            }
        });
    let config = LoaderConfig {
        max_ahead: 2,
        log: Some(path("skipped.jsonl")),
        ..LoaderConfig::default()
    };
    let mut loader = Loader::new(sources.into(), config).unwrap();
    let mut read = |count: usize| {
        for batch in loader.by_ref().take(count / BATCH) {
            assert_eq!(batch.unwrap().samples.len(), BATCH);
        }
        peak()
    };
    let first = read(300);
    let last = read(1000);
    println!("peak after 300 samples {first} KiB, after 1,300 {last} KiB");
    assert!(last <= first + GROWTH, "{first} KiB, then {last} KiB");
}
