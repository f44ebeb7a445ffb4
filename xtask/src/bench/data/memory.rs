//! Memory of a loader that reads many samples.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use divot_data::dataset::{
    Filter, Format, Loader, LoaderConfig, MixedSource, Source, SourceConfig,
};
use divot_data::{ClipReader, write_gif, write_mp4};
use image::ImageFormat;

use super::make::{add, drawn, encoded};

/// How many samples are read, and after how many the memory is looked at first.
const SAMPLES: usize = 10_000;
const FIRST: usize = 1_000;
const BATCH: usize = 10;
/// Most that the memory may have grown in between, in bytes.
const GROWTH: u64 = 8 << 20;

/// Videos and archives of each kind.
const FILES: usize = 24;
/// Width and height of a frame, and of what is cut from it.
const SIZE: (usize, usize) = (96, 64);
const CUT: usize = 32;

/// Reads many small samples of several sources, prints the memory on the way, and fails if it grows.
pub fn memory(name: &str, workers: usize) -> Result<()> {
    let folder = tempfile::tempdir().context("a temporary folder cannot be made")?;
    make(folder.path())?;
    let mut sources = Vec::new();
    for (format, place, weight) in [
        (Format::Videos, "videos", 1.0),
        (Format::Captions, "captions.jsonl", 1.0),
        (Format::Webdataset, "tar", 2.0),
    ] {
        let mut config = SourceConfig::new(format, folder.path().join(place));
        config.filter = Filter {
            min_side: Some(1),
            ..Filter::default()
        };
        sources.push(MixedSource {
            name: place.to_owned(),
            samples: Box::new(Source::open(&config, &ClipReader::of_size(CUT))?),
            weight,
            batch: BATCH,
        });
    }
    let config = LoaderConfig {
        workers,
        log: Some(folder.path().join("skipped.jsonl")),
        ..LoaderConfig::default()
    };
    let mut loader = Loader::new(sources, config)?;
    let (mut read, mut first) = (0, None);
    while read < SAMPLES {
        let batch = loader.next().context("the loader ended")??;
        read += batch.samples.len();
        if read % FIRST == 0 {
            let resident = resident()?;
            first.get_or_insert(resident);
            println!(
                "{name:12} {read:6} samples: {:.1} MiB resident",
                mib(resident)
            );
        }
    }
    let broken: u64 = loader.skipped().iter().map(|(.., count)| count).sum();
    let (first, last) = (first.context("nothing was read")?, resident()?);
    println!(
        "{name:12} {workers} threads, videos, captions and archives, {broken} broken files: {:+.1} MiB from {FIRST} to {SAMPLES} samples, peak {:.1} MiB",
        mib(last) - mib(first),
        mib(divot::peak_memory().unwrap_or(0))
    );
    ensure!(
        last <= first + GROWTH,
        "the memory grew by more than {:.0} MiB",
        mib(GROWTH)
    );
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 20) as f64
}

/// Returns the resident memory of this process in bytes.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")
        .context("the memory of a process can be read only on Linux")?;
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .context("/proc/self/status has no VmRSS")?;
    Ok(1024 * kibibytes.trim().parse::<u64>()?)
}

/// Makes videos, a file of captions that names them, and an archive. One video and one picture are broken.
fn make(folder: &Path) -> Result<()> {
    let videos = folder.join("videos");
    std::fs::create_dir(&videos)?;
    std::fs::create_dir(folder.join("tar"))?;
    let mut lines = String::new();
    let mut archive = tar::Builder::new(File::create(folder.join("tar/0.tar"))?);
    for number in 0..FILES {
        let frames: Vec<_> = (0..16 + number)
            .map(|i| drawn(SIZE.0, SIZE.1, 7 * number + i))
            .collect();
        let mp4 = videos.join(format!("{number}.mp4"));
        write_mp4(&mp4, &frames, 8.0)?;
        let gif = folder.join("frames.gif");
        write_gif(&gif, &frames[..8], 8.0)?;
        let line =
            serde_json::json!({"video": format!("videos/{number}.mp4"), "caption": "it moves"});
        lines += &format!("{line}\n");
        let picture = frames.into_iter().next().context("no frame")?;
        for (ending, content) in [
            ("mp4", std::fs::read(&mp4)?),
            ("gif", std::fs::read(&gif)?),
            ("jpg", encoded(picture.clone(), ImageFormat::Jpeg)?),
            ("png", encoded(picture, ImageFormat::Png)?),
        ] {
            let broken = number == 0 && ending != "gif";
            let content = if broken {
                &content[..content.len() / 2]
            } else {
                &content
            };
            let key = format!("{number}-{ending}");
            add(&mut archive, &format!("{key}.{ending}"), content)?;
            add(&mut archive, &format!("{key}.txt"), b"it moves")?;
        }
    }
    archive.finish()?;
    std::fs::write(videos.join("broken.mp4"), b"not a video")?;
    Ok(std::fs::write(folder.join("captions.jsonl"), lines)?)
}
