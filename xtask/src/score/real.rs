//! Real videos, shrunk to the model's frames and reconstructed.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use divot::checkpoint::Part;
use divot_data::{Clip, Frame, Video, metrics};

use super::Scoring;
use super::networks::AT_A_TIME;
use super::reconstruction::mean_frame;
use super::sheets::{Entry, write};
use super::table::{Cell, Table};

/// Makes the table.
pub fn tables(scoring: &Scoring, videos: &[Video]) -> Result<Vec<Table>> {
    scoring.side()?;
    let reader = scoring.pipeline.clip_reader()?;
    let mut clips = Vec::new();
    let mut names = Vec::new();
    for video in videos {
        clips.push(reader.read(video, 0.0)?);
        let name = video.path().file_name().unwrap_or_default();
        names.push(name.to_string_lossy().into_owned());
    }
    let tokens = scoring.tokens(clips.iter().cloned().map(Ok), clips.len())?;
    let decoder = scoring.decoder(Part::Detokenizer)?;
    let mut ceilings = Vec::new();
    for batch in clips.chunks(AT_A_TIME) {
        ceilings.extend(decoder.autoencoded(batch)?);
    }

    let mut shown: Vec<Vec<Frame>> = Vec::new();
    // By clip and seed.
    let mut scores: Vec<[Vec<f64>; 2]> = vec![Default::default(); clips.len()];
    for &seed in &scoring.seeds {
        let mut progress = scoring.progress(&format!("real clips with seed {seed}"), clips.len());
        decoder.decode(&tokens, seed, &mut progress, |place, made| {
            let real = clips[place].frames();
            scores[place][0].push(metrics::mean(real, &made, metrics::psnr)?);
            let ssim = metrics::mean(real, &made, metrics::ssim);
            scores[place][1].push(ssim.unwrap_or(f64::NAN));
            if seed == scoring.seeds[0] {
                shown.push(made);
            }
            Ok(())
        })?;
    }

    let mut rows = Vec::new();
    for (place, clip) in clips.iter().enumerate() {
        let real = clip.frames();
        let psnr = |made: &[Frame]| metrics::mean(real, made, metrics::psnr);
        let still = vec![mean_frame(real); real.len()];
        let [made, ssim] = scores[place].clone();
        rows.push(vec![
            names[place].as_str().into(),
            Cell::Score(made, 2),
            Cell::Score(ssim, 3),
            Cell::Score(vec![psnr(&ceilings[place])?], 2),
            Cell::Score(vec![psnr(&still)?], 2),
        ]);
    }
    if let Some(folder) = &scoring.sheets {
        sheet(folder, &names, &clips, &ceilings, &shown)?;
    }
    Ok(vec![Table {
        title: "Real clips",
        note: "The first two seconds of each video, its middle square shrunk to the model's frames, as tokens and back. \
               The autoencoder alone is the ceiling; the mean of a clip's frames, standing still, is what a model gets \
               that sees everything but motion."
            .to_owned(),
        columns: vec!["video", "PSNR dB", "SSIM", "autoencoder dB", "mean frame dB"],
        rows,
    }])
}

/// Opens the videos of a folder, in the order of their names.
///
/// # Errors
/// If there are none, or one cannot be read.
pub fn videos(folder: &Path) -> Result<Vec<Video>> {
    let listed = fs::read_dir(folder).with_context(|| {
        format!(
            "{}: cannot be listed; name a folder with --real",
            folder.display()
        )
    })?;
    let mut paths = Vec::new();
    for entry in listed {
        let path = entry?.path();
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        if extension == "gif" || extension == "mp4" {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        bail!(
            "{}: has no .mp4 and no .gif; name a folder with videos",
            folder.display()
        );
    }
    paths.sort();
    paths.iter().map(|path| Ok(Video::open(path)?)).collect()
}

/// Each clip: real, what the autoencoder makes of it, and what the model makes of it.
fn sheet(
    folder: &Path,
    names: &[String],
    clips: &[Clip],
    ceilings: &[Vec<Frame>],
    made: &[Vec<Frame>],
) -> Result<()> {
    let entries = (0..clips.len()).map(|place| Entry {
        text: format!("{}: real, autoencoder, model", names[place]),
        rows: vec![
            clips[place].frames().to_vec(),
            ceilings[place].clone(),
            made[place].clone(),
        ],
    });
    write(folder, "real", &entries.collect::<Vec<_>>())
}
