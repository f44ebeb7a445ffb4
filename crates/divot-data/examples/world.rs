//! How well the oracle reads the world: `cargo run --release -p divot-data --example world -- 2000 sheets`.
//!
//! Prints for how many of so many test clips each attribute is read as it is, from the clips themselves and from blurred
//! and noisy ones. With a folder, contact sheets of each kind of clip are written there.

use std::path::Path;

use divot_data::world::{Asking, Content, Motion, Oracle, Split, World};
use divot_data::{Frame, contact_sheet, metrics, write_png};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let count: u64 = arguments.next().as_deref().unwrap_or("500").parse()?;
    let world = World {
        split: Split::Test,
        ..World::default()
    };
    println!("clips      PSNR  count  shape colour   size motion    all");
    for (name, damage) in [("clean", 0), ("blurred", 1), ("coarse", 2)] {
        score(&world, count, name, damage)?;
    }
    match arguments.next() {
        Some(folder) => sheets(&world, Path::new(&folder)),
        None => Ok(()),
    }
}

/// Blurs frames `times` over, takes some of their colour, and adds noise.
fn damaged(frame: &Frame, times: usize, number: usize) -> Frame {
    let mut frame = frame.clone();
    let (width, height) = (frame.width as i32, frame.height as i32);
    for _ in 0..times * 3 {
        let before = frame.clone();
        for y in 0..height {
            for x in 0..width {
                let mut sum = [0u32; 3];
                for (right, down) in [
                    (-1, -1),
                    (0, -1),
                    (1, -1),
                    (-1, 0),
                    (0, 0),
                    (1, 0),
                    (-1, 1),
                    (0, 1),
                    (1, 1),
                ] {
                    let column = (x + right).clamp(0, width - 1) as usize;
                    let row = (y + down).clamp(0, height - 1) as usize;
                    let pixel = before.pixel(column, row);
                    sum = std::array::from_fn(|i| sum[i] + u32::from(pixel[i]));
                }
                let at = (y * width + x) as usize * 3;
                for (value, sum) in frame.rgb[at..at + 3].iter_mut().zip(sum) {
                    *value = (sum / 9) as u8;
                }
            }
        }
    }
    if times > 0 {
        for (at, value) in frame.rgb.iter_mut().enumerate() {
            let noise = ((at + number * 12_289) as u32).wrapping_mul(2_654_435_761) >> 24;
            *value = (f64::from(*value) * 0.85 + 20.0 + f64::from(noise) * 0.12 - 15.0) as u8;
        }
    }
    frame
}

fn score(
    world: &World,
    count: u64,
    name: &str,
    damage: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let oracle = Oracle::default();
    let (mut counts, mut objects, mut right, mut all, mut psnr) = (0, 0, [0; 4], 0, 0.0);
    for index in 0..count {
        let scene = world.scene(index);
        let clean = scene.frames(world.size, world.frames);
        let frames: Vec<Frame> = clean
            .iter()
            .enumerate()
            .map(|(number, frame)| damaged(frame, damage, number))
            .collect();
        psnr += metrics::mean(&clean, &frames, metrics::psnr)?;
        let reading = oracle.read(&frames);
        let verdict = reading.verdict(&scene);
        counts += u32::from(verdict.count);
        all += u32::from(verdict.is_right());
        for agreement in &verdict.objects {
            objects += 1;
            let one = [
                agreement.shape,
                agreement.colour,
                agreement.size,
                agreement.motion,
            ];
            right
                .iter_mut()
                .zip(one)
                .for_each(|(sum, one)| *sum += u32::from(one));
        }
        if !verdict.is_right() && std::env::var_os("SHOW_MISSES").is_some() {
            let seen = reading.objects.iter();
            println!(
                "{index}: {:?}",
                seen.map(|s| (s.shape, s.colour, s.size, s.motion, s.then))
                    .collect::<Vec<_>>()
            );
            for s in &scene.objects {
                println!(
                    "    {:?} pan {:?}",
                    (s.shape, s.colour, s.size, s.motion, s.then, s.reach),
                    scene.camera.pan
                );
            }
        }
    }
    let share = |right: u32, of: u32| 100.0 * f64::from(right) / f64::from(of);
    let [shape, colour, size, motion] = right.map(|right| share(right, objects));
    println!(
        "{name:8} {:6.2} {:6.2} {shape:6.2} {colour:6.2} {size:6.2} {motion:6.2} {:6.2}",
        psnr / count as f64,
        share(counts, count as u32),
        share(all, count as u32)
    );
    Ok(())
}

fn sheets(world: &World, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(folder)?;
    let row = |frames: Vec<Frame>| -> Vec<Frame> { frames.into_iter().step_by(3).collect() };
    let sheet = |name: &str, rows: &[Vec<Frame>]| {
        let rows: Vec<&[Frame]> = rows.iter().map(Vec::as_slice).collect();
        write_png(folder.join(name), &contact_sheet(&rows, 2)?)
    };
    // 48 scenes in their middle.
    let middles = (0..48).map(|index| world.scene(index).frames(world.size, 3).swap_remove(1));
    let middles: Vec<Frame> = middles.collect();
    sheet(
        "scenes.png",
        &middles
            .chunks(12)
            .map(<[Frame]>::to_vec)
            .collect::<Vec<_>>(),
    )?;
    // Each motion over time.
    let mut rows = Vec::new();
    for motion in Motion::ALL {
        let scenes = (0..).map(|index| world.scene(index));
        let scene = scenes
            .into_iter()
            .find(|scene| scene.objects[0].motion == motion && scene.objects.len() == 1);
        rows.extend(scene.map(|scene| row(scene.frames(world.size, world.frames))));
    }
    sheet("motions.png", &rows)?;
    let textures = World {
        textures: 1.0,
        ..world.clone()
    };
    let rows: Vec<_> = (0..8)
        .map(|index| match textures.content(index) {
            Content::Textures(texture) => row(texture.frames(world.size, world.frames)),
            Content::Sprites(_) => Vec::new(),
        })
        .collect();
    sheet("textures.png", &rows)?;
    let story = world.story(0);
    let rows: Vec<_> = story
        .scenes
        .iter()
        .map(|scene| row(scene.frames(world.size, world.frames)))
        .collect();
    sheet("story.png", &rows)?;
    println!("{:?}", world.story_text(0));
    for index in 0..24 {
        println!("{}", world.caption(index));
    }
    for index in 0..6 {
        println!("{:?}", world.questions(index, Asking::Any));
    }
    println!("{}", textures.caption(0));
    Ok(())
}
