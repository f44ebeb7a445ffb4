//! Makes the videos and archives that are read.

use std::fs::{self, File};
use std::io::Cursor;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use divot_data::{Frame, Video, write_mp4};
use image::{ImageFormat, RgbImage};

use super::Kind;

/// Number of videos, and of pictures from them.
const VIDEOS: usize = 64;
const PICTURES: usize = 128;
const SHARDS: usize = 4;

/// Width and height of videos, and their frame rates in frames per second.
const SIZES: [(usize, usize); 2] = [(320, 240), (640, 360)];
const RATES: [u32; 3] = [24, 25, 30];

/// Makes videos, archives of the same videos, and archives of pictures: a folder for each [`Kind`]. Returns what
/// the videos are.
pub fn make(folder: &Path) -> Result<String> {
    let videos = Kind::Videos.folder(folder);
    fs::create_dir(&videos)?;
    let paths: Vec<_> = (0..VIDEOS)
        .map(|number| videos.join(format!("{number:03}.mp4")))
        .collect();
    let quiet = |command: &mut Command| command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let ffmpeg = quiet(Command::new("ffmpeg").arg("-version")).is_ok_and(|status| status.success());
    for (number, path) in paths.iter().enumerate() {
        // From 3 to 8 seconds, at any size and rate.
        let seconds = 3.0 + 5.0 * ((number * 23 % VIDEOS) as f64) / (VIDEOS - 1) as f64;
        let (width, height) = SIZES[number % SIZES.len()];
        let rate = RATES[number / SIZES.len() % RATES.len()];
        if !ffmpeg {
            let count = (seconds * f64::from(rate)) as usize;
            let frames: Vec<_> = (0..count)
                .map(|i| drawn(width, height, number + i))
                .collect();
            write_mp4(path, &frames, rate.into())?;
            continue;
        }
        // A zoom has motion and detail everywhere, and noise is what cameras add.
        let source = format!(
            "mandelbrot=size={width}x{height}:rate={rate}:maxiter=120:start_scale={}:end_pts=400,noise=alls=5:allf=t",
            1.5 + 0.1 * (number % 16) as f64
        );
        let mut command = Command::new("ffmpeg");
        command
            .args([
                "-v",
                "error",
                "-f",
                "lavfi",
                "-i",
                &source,
                "-t",
                &seconds.to_string(),
            ])
            .args([
                "-c:v", "libx264", "-preset", "medium", "-crf", "23", "-bf", "3", "-g", "48",
            ])
            .args(["-pix_fmt", "yuv420p", "-movflags", "+faststart"])
            .arg(path);
        let status = quiet(&mut command)?;
        ensure!(
            status.success(),
            "ffmpeg encoded no video; it needs libx264 and the sources `mandelbrot` and `noise`"
        );
    }
    let bytes = paths.iter().map(|path| Ok(fs::metadata(path)?.len()));
    let bytes = bytes.sum::<Result<u64>>()?;

    for (shard, paths) in paths.chunks(VIDEOS / SHARDS).enumerate() {
        let mut archive = archive(Kind::Shards, folder, shard)?;
        for path in paths {
            let key = path.file_stem().context("a path without a name")?;
            let key = key.to_string_lossy();
            add(&mut archive, &format!("{key}.mp4"), &fs::read(path)?)?;
            add(
                &mut archive,
                &format!("{key}.txt"),
                caption(&key).as_bytes(),
            )?;
        }
        archive.finish()?;
    }
    let numbers: Vec<usize> = (0..PICTURES).collect();
    for (shard, numbers) in numbers.chunks(PICTURES / SHARDS).enumerate() {
        let mut archive = archive(Kind::Images, folder, shard)?;
        for number in numbers {
            let video = Video::open(&paths[number % VIDEOS])?;
            let frames = video.frames(&[number / VIDEOS * 30])?;
            // A picture in four is a PNG.
            let (ending, format) = match number % 4 {
                3 => ("png", ImageFormat::Png),
                _ => ("jpg", ImageFormat::Jpeg),
            };
            let content = encoded(frames.into_iter().next().context("no frame")?, format)?;
            let key = format!("{number:04}");
            add(&mut archive, &format!("{key}.{ending}"), &content)?;
            add(
                &mut archive,
                &format!("{key}.txt"),
                caption(&key).as_bytes(),
            )?;
        }
        archive.finish()?;
    }
    let by = match ffmpeg {
        true => "x264 with B-frames and a keyframe in 48, as real files have",
        false => {
            "no ffmpeg on the PATH, so by the crate's own encoder, without the B-frames of real files"
        }
    };
    Ok(format!(
        "{VIDEOS} videos of 3 to 8 s in 320x240 and 640x360 ({:.1} MiB; {by}), {PICTURES} pictures of these sizes, {SHARDS} archives of each",
        bytes as f64 / (1u64 << 20) as f64
    ))
}

fn archive(kind: Kind, folder: &Path, number: usize) -> Result<tar::Builder<File>> {
    let folder = kind.folder(folder);
    fs::create_dir_all(&folder)?;
    Ok(tar::Builder::new(File::create(
        folder.join(format!("{number:04}.tar")),
    )?))
}

pub fn add(archive: &mut tar::Builder<File>, name: &str, content: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    Ok(archive.append_data(&mut header, name, content)?)
}

pub fn encoded(frame: Frame, format: ImageFormat) -> Result<Vec<u8>> {
    let (width, height) = (frame.width as u32, frame.height as u32);
    let picture =
        RgbImage::from_raw(width, height, frame.rgb).context("a frame of another size")?;
    let mut content = Cursor::new(Vec::new());
    picture.write_to(&mut content, format)?;
    Ok(content.into_inner())
}

fn caption(key: &str) -> String {
    format!("a zoom into the edge of a set, number {key}")
}

/// A picture with detail, which moves with its number.
pub fn drawn(width: usize, height: usize, number: usize) -> Frame {
    let value = |x: usize, y: usize, c: usize| {
        ((x * 3 + y * 5 + c * 29 + number * 4 + x * y / 64) % 256) as u8
    };
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    Frame {
        width,
        height,
        rgb: pixels
            .flat_map(|(x, y)| [0, 1, 2].map(|c| value(x, y, c)))
            .collect(),
    }
}
