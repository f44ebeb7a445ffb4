//! How well the oracle reads the world: `cargo run --release -p divot-data --example world -- 2000 sheets`.
//!
//! Prints for how many of so many test clips each attribute is read as it is, off the clips themselves and off blurred
//! and noisy ones. With a folder, contact sheets of each kind of clip are written there.

use std::error::Error;
use std::path::Path;

use divot_data::world::{Motion, Oracle, Split, World};
use divot_data::{Frame, contact_sheet, metrics, write_png};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let count: u64 = arguments.next().as_deref().unwrap_or("500").parse()?;
    let world = World {
        split: Split::Test,
        ..World::default()
    };
    println!("blur  PSNR  count  shape colour   size motion    all");
    for blur in [0, 3, 6] {
        score(&world, count, blur)?;
    }
    match arguments.next() {
        Some(folder) => sheets(&world, Path::new(&folder)),
        None => Ok(()),
    }
}

/// Prints shares in percent: of clips whose objects are counted right, of objects, and of clips that are read without a
/// mistake.
fn score(world: &World, count: u64, blur: usize) -> Result<(), Box<dyn Error>> {
    let oracle = Oracle::default();
    let (mut counted, mut objects, mut right, mut all, mut psnr) = (0, 0, [0; 4], 0, 0.0);
    for index in 0..count {
        let scene = world.scene(index);
        let clean = scene.frames(world.size, world.frames);
        let damaged = clean
            .iter()
            .zip(0..)
            .map(|(frame, number)| damaged(frame, blur, number));
        let damaged: Vec<Frame> = damaged.collect();
        psnr += metrics::mean(&clean, &damaged, metrics::psnr)?;
        let verdict = oracle.read(&damaged).verdict(&scene);
        counted += u64::from(verdict.count);
        all += u64::from(verdict.is_right());
        objects += verdict.objects.len() as u64;
        for it in verdict.objects {
            for (sum, one) in right
                .iter_mut()
                .zip([it.shape, it.colour, it.size, it.motion])
            {
                *sum += u64::from(one);
            }
        }
    }
    let share = |right: u64, of: u64| 100.0 * right as f64 / of as f64;
    let [shape, colour, size, motion] = right.map(|right| share(right, objects));
    let (psnr, counted, all) = (
        psnr / count as f64,
        share(counted, count),
        share(all, count),
    );
    println!(
        "{blur:4} {psnr:5.1} {counted:6.2} {shape:6.2} {colour:6.2} {size:6.2} {motion:6.2} {all:6.2}"
    );
    Ok(())
}

/// Takes the mean of nine pixels, `blur` times over, and then some of the contrast, and adds noise.
fn damaged(frame: &Frame, blur: usize, number: u32) -> Frame {
    let mut frame = frame.clone();
    if blur == 0 {
        return frame;
    }
    for _ in 0..blur {
        let before = frame.clone();
        for at in 0..frame.width * frame.height {
            let (x, y) = (at % frame.width, at / frame.width);
            let mut sum = [0u32; 3];
            for near in 0..9 {
                let column = (x + near % 3).saturating_sub(1).min(frame.width - 1);
                let row = (y + near / 3).saturating_sub(1).min(frame.height - 1);
                let pixel = before.pixel(column, row);
                sum = std::array::from_fn(|i| sum[i] + u32::from(pixel[i]));
            }
            frame.rgb[at * 3..][..3].copy_from_slice(&sum.map(|sum| (sum / 9) as u8));
        }
    }
    for (value, at) in frame.rgb.iter_mut().zip(number * 12_289..) {
        let noise = f64::from(at.wrapping_mul(2_654_435_761) >> 24) - 127.5;
        *value = (f64::from(*value) * 0.85 + 20.0 + noise * 0.12) as u8;
    }
    frame
}

fn sheets(world: &World, folder: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    let sheet = |name: &str, rows: Vec<Vec<Frame>>| {
        let rows: Vec<&[Frame]> = rows.iter().map(Vec::as_slice).collect();
        write_png(folder.join(name), &contact_sheet(&rows, 2)?)
    };
    // Each third frame.
    let row = |frames: Vec<Frame>| frames.into_iter().step_by(3).collect::<Vec<_>>();

    let middles = (0..48).map(|index| world.scene(index).frames(world.size, 3).swap_remove(1));
    let middles: Vec<Frame> = middles.collect();
    sheet(
        "scenes.png",
        middles.chunks(12).map(<[_]>::to_vec).collect(),
    )?;

    let does = |motion| move |index: &u64| world.scene(*index).objects[0].motion == motion;
    let shown = Motion::ALL
        .into_iter()
        .filter_map(|motion| (0..).find(does(motion)));
    let shown = shown.map(|index| row(world.scene(index).frames(world.size, world.frames)));
    sheet("motions.png", shown.collect())?;

    let scenes = world.story(0).scenes.into_iter();
    let scenes = scenes.map(|scene| row(scene.frames(world.size, world.frames)));
    sheet("story.png", scenes.collect())?;

    let textures = World {
        textures: 1.0,
        ..world.clone()
    };
    let clips = (0..8).map(|index| row(textures.content(index).frames(world.size, world.frames)));
    sheet("textures.png", clips.collect())?;
    Ok(())
}
