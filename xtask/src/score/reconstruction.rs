//! Reconstruction: clips to tokens and back, beside what the autoencoder and the oracle lose by themselves.

use anyhow::Result;
use divot::checkpoint::Part;
use divot_data::world::{Scene, Size};
use divot_data::{Clip, Frame};

use super::Scoring;
use super::held_out::{HeldOut, SPLITS, held_out};
use super::networks::AT_A_TIME;
use super::sheets::{Entry, Gallery};
use super::table::{Cell, Table};
use super::tally::{AGREEMENT, FIDELITY, Measured, Tally, agreement, fidelity};

const NOTE: &str = "\
PSNR and SSIM compare frames with the clip's own. The oracle then reads the frames: of clips, whether it counts as many \
objects as there are; of objects, whether colour, shape, size and motion are the true ones; and of clips, whether all \
of this is right. Half of the clips have only combinations of colour, shape and motion that training has (test-seen), \
each of the others has one that it never has (test-novel). The other rows say what such numbers mean: the clips \
themselves show what the oracle misses, the autoencoder alone is the ceiling of the model, and the last three are what \
frames score that are not made of tokens: the mean of the clip's frames standing still, mid-grey, and another clip.";

/// Frames that are compared, in the order of the table.
const KINDS: [&str; 6] = [
    "the clips themselves",
    "the autoencoder alone",
    "**tokens and back**",
    "their mean frame",
    "mid-grey",
    "another clip",
];
const ITSELF: usize = 0;
const CEILING: usize = 1;
const MADE: usize = 2;
const STILL: usize = 3;
const GREY: usize = 4;
const OTHER: usize = 5;

/// A tally for each seed, of each kind of frames and each split. What needs no seed has one.
type Tallies = [[Vec<Tally>; 2]; KINDS.len()];

/// Makes the tables.
pub fn tables(scoring: &Scoring) -> Result<Vec<Table>> {
    let clips = held_out(scoring.clips, scoring.side()?)?;
    let tokens = scoring.tokens(clips.iter().map(HeldOut::clip), clips.len())?;
    let decoder = scoring.decoder(Part::Detokenizer)?;
    let mut tallies = Tallies::default();

    let mut ceiling_gallery = Gallery::default();
    let mut progress = scoring.progress("autoencoder", clips.len());
    for (number, batch) in clips.chunks(AT_A_TIME).enumerate() {
        let read = batch.iter().map(HeldOut::clip);
        let read = read.collect::<Result<Vec<_>>>()?;
        let ceilings = decoder.autoencoded(&read)?;
        for (place, (ceiling, clip)) in ceilings.into_iter().zip(&read).enumerate() {
            let place = number * AT_A_TIME + place;
            let other = clips[(place + 1) % clips.len()].frames();
            let clip = (&clips[place], clip);
            let measured = compare(scoring, &mut tallies, clip, &ceiling, &other)?;
            ceiling_gallery.add(measured.quality(), || Entry {
                text: describe(clip.0, &measured),
                rows: vec![clip.1.frames().to_vec(), ceiling],
            });
        }
        progress.advance(batch.len())?;
    }

    ceiling_gallery.write(scoring.sheets.as_deref(), "autoencoder")?;

    let mut galleries: [Gallery; 2] = Default::default();
    for (number, &seed) in scoring.seeds.iter().enumerate() {
        let name = format!("reconstruction with seed {seed}");
        let mut progress = scoring.progress(&name, clips.len());
        let mut seeds: [Tally; 2] = Default::default();
        decoder.decode(&tokens, seed, &mut progress, |place, made| {
            let clip: &HeldOut = &clips[place];
            let real = clip.frames();
            let measured = Measured::of(&scoring.oracle, &clip.scene(), &real, &made)?;
            seeds[clip.split()].add(&measured);
            if number == 0 {
                galleries[clip.split()].add(measured.quality(), || Entry {
                    text: describe(clip, &measured),
                    rows: vec![real, made],
                });
            }
            Ok(())
        })?;
        for (split, tally) in seeds.into_iter().enumerate() {
            tallies[MADE][split].push(tally);
        }
    }
    for (split, gallery) in SPLITS.iter().zip(&galleries) {
        let name = format!("reconstruction-{}", split.name());
        gallery.write(scoring.sheets.as_deref(), &name)?;
    }
    Ok(vec![table(&clips, &tallies), shapes(&tallies)])
}

/// Adds everything that is compared with a clip and needs no seed. Returns the autoencoder's measures.
fn compare(
    scoring: &Scoring,
    tallies: &mut Tallies,
    (clip, read): (&HeldOut, &Clip),
    ceiling: &[Frame],
    other: &[Frame],
) -> Result<Measured> {
    let (scene, real) = (clip.scene(), read.frames());
    let grey = Frame {
        rgb: vec![127; real[0].rgb.len()],
        ..real[0].clone()
    };
    let grey = vec![grey; real.len()];
    let still = vec![mean_frame(real); real.len()];
    let mut add = |kind: usize, made: &[Frame]| -> Result<Measured> {
        let measured = Measured::of(&scoring.oracle, &scene, real, made)?;
        let seeds = &mut tallies[kind][clip.split()];
        if seeds.is_empty() {
            seeds.push(Tally::default());
        }
        seeds[0].add(&measured);
        Ok(measured)
    };
    add(ITSELF, real)?;
    add(STILL, &still)?;
    add(GREY, &grey)?;
    add(OTHER, other)?;
    add(CEILING, ceiling)
}

/// The mean of frames of one size.
pub fn mean_frame(frames: &[Frame]) -> Frame {
    let mut mean = frames[0].clone();
    for (at, value) in mean.rgb.iter_mut().enumerate() {
        let sum: usize = frames.iter().map(|frame| usize::from(frame.rgb[at])).sum();
        *value = ((sum + frames.len() / 2) / frames.len()) as u8;
    }
    mean
}

fn table(clips: &[HeldOut], tallies: &Tallies) -> Table {
    let mut rows = Vec::new();
    for (place, split) in SPLITS.iter().enumerate() {
        let count = clips.iter().filter(|clip| clip.split() == place).count();
        for (kind, tallies) in KINDS.iter().zip(tallies) {
            let mut row = vec![split.name().into(), count.into(), (*kind).into()];
            row.extend(fidelity(&tallies[place]));
            row.extend(agreement(&tallies[place]));
            rows.push(row);
        }
    }
    let mut columns = vec!["split", "clips", "frames"];
    columns.extend(FIDELITY);
    columns.extend(AGREEMENT);
    Table {
        title: "Reconstruction",
        note: NOTE.to_owned(),
        columns,
        rows,
    }
}

/// Shapes by the size of their objects: small ones are the hardest to keep.
fn shapes(tallies: &Tallies) -> Table {
    let mut rows = Vec::new();
    for (place, split) in SPLITS.iter().enumerate() {
        for (kind, tallies) in KINDS.iter().zip(tallies).take(MADE + 1) {
            let mut row: Vec<Cell> = vec![split.name().into(), (*kind).into()];
            row.extend(Size::ALL.map(|size| {
                Cell::percent(&tallies[place], |tally| tally.shape_by_size[size as usize])
            }));
            rows.push(row);
        }
    }
    let mut columns = vec!["split", "frames"];
    columns.extend(Size::ALL.map(Size::name));
    Table {
        title: "Shapes by size",
        note: "Of the objects of each size, whether the oracle sees the true shape.".to_owned(),
        columns,
        rows,
    }
}

/// What a sheet says of a clip: the truth, decibels, and what the oracle does not see of it.
fn describe(clip: &HeldOut, measured: &Measured) -> String {
    let verdict = &measured.verdict;
    let mut wrong: Vec<&str> = Vec::new();
    let mut note = |right: bool, what| {
        if !right {
            wrong.push(what);
        }
    };
    note(verdict.count, "count");
    for it in &verdict.objects {
        note(it.colour, "colour");
        note(it.shape, "shape");
        note(it.size, "size");
        note(it.motion, "motion");
    }
    let wrong = match wrong.is_empty() {
        true => "all is seen as it is".to_owned(),
        false => format!("not seen as it is: {}", wrong.join(", ")),
    };
    let truth = in_words(&clip.scene());
    format!("{}, {truth}: {:.1} dB, {wrong}", clip.name(), measured.psnr)
}

/// The objects of a scene, in a few words.
pub fn in_words(scene: &Scene) -> String {
    let objects = scene.objects.iter().map(|object| {
        let then = object.then.map(|then| format!(", then {}", then.name()));
        format!(
            "{} {} {} ({}{})",
            object.size.name(),
            object.colour.name(),
            object.shape.name(),
            object.motion.name(),
            then.unwrap_or_default()
        )
    });
    objects.collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use divot_data::world::Oracle;

    use super::*;

    /// Frames of the truth agree with it; frames of other scenes, mean frames and grey do not.
    #[test]
    fn the_truth_scores_high_and_all_else_low() {
        let oracle = Oracle::default();
        let clips = held_out(40, 64).unwrap();
        assert_eq!(clips.iter().filter(|clip| clip.split() == 0).count(), 20);
        let (mut truth, mut other, mut still) = Default::default();
        let add = |tally: &mut Tally, clip: &HeldOut, made: &[Frame]| {
            let measured = Measured::of(&oracle, &clip.scene(), &clip.frames(), made).unwrap();
            tally.add(&measured);
            measured
        };
        for (place, clip) in clips.iter().enumerate() {
            let frames = clip.frames();
            let measured = add(&mut truth, clip, &frames);
            assert_eq!(measured.psnr, f64::INFINITY);
            add(&mut other, clip, &clips[(place + 1) % clips.len()].frames());
            let mean = vec![mean_frame(&frames); frames.len()];
            let measured = add(&mut still, clip, &mean);
            assert!(measured.quality() <= 1.0 + 0.01);
        }
        for share in [
            truth.count,
            truth.colour,
            truth.shape,
            truth.motion,
            truth.all,
        ] {
            assert!(share.percent() >= 95.0, "{truth:?}");
        }
        assert!(other.all.percent() <= 5.0, "{other:?}");
        assert!(other.colour.percent() < 40.0, "{other:?}");
        assert!(still.motion.percent() < 60.0, "{still:?}");
        assert!(other.psnr.value() < still.psnr.value());
        for shapes in truth.shape_by_size {
            assert!(shapes.percent() >= 90.0, "{truth:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let oracle = Oracle::default();
        let clip = &held_out(2, 64).unwrap()[0];
        let (scene, real) = (clip.scene(), clip.frames());
        let measured = Measured::of(&oracle, &scene, &real, &real).unwrap();
        assert!(describe(clip, &measured).ends_with("all is seen as it is"));
        let grey = vec![Frame::filled(64, 64, [127; 3]).unwrap(); real.len()];
        let worse = Measured::of(&oracle, &scene, &real, &grey).unwrap();
        assert!(describe(clip, &worse).contains("count, colour, shape, size, motion"));
        assert!(worse.quality() < measured.quality());
    }
}
