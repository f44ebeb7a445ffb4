//! What tokens tell: a linear map from them to the ground truth.

use anyhow::Result;
use burn::tensor::{DType, Tensor};
use divot_data::world::{Colour, Motion, Object, Shape, Size, Split, World};

use super::Scoring;
use super::held_out::{HeldOut, SPLITS};
use super::table::{Cell, Table};
use super::tally::Mean;

const NOTE: &str = "\
A linear map from the tokens of a clip to what is in it, fitted by ridge regression on clips of training with one object, \
and read off held-out ones: shares of the objects whose colour, shape, size and motion come out largest, and how much of \
the variance of the place where they begin is explained. It needs no other network, so it tells early in stage 1 what the \
tokenizer keeps. The first row of a split is what the vision tower's patch tokens tell, averaged over each frame, and the last \
row what tokens of another clip tell.";

/// Least held-out clips: places vary among two or more of a split.
pub const LEAST: usize = 4;
/// Clips that the map is fitted on.
const TRAINING: usize = 2000;
/// Of them, one in so many chooses the strength of the ridge.
const HELD_BACK: usize = 5;
/// Strengths, as shares of the mean square of a clip's tokens.
const RIDGES: [f64; 5] = [1e-3, 1e-2, 1e-1, 1.0, 10.0];
/// Where the targets of colour, shape, size, motion and place begin, and where they end.
const GROUPS: [usize; 6] = {
    let mut ends = [0; 6];
    let sizes = [
        Colour::ALL.len(),
        Shape::ALL.len(),
        Size::ALL.len(),
        Motion::ALL.len(),
        2,
    ];
    let mut group = 0;
    while group < sizes.len() {
        ends[group + 1] = ends[group] + sizes[group];
        group += 1;
    }
    ends
};
const TARGETS: usize = GROUPS[5];

/// Numbers for each clip.
type Rows = Vec<Vec<f64>>;

/// Makes the table.
pub fn tables(scoring: &Scoring) -> Result<Vec<Table>> {
    let side = scoring.read_side()?;
    let mut clips = single(Split::Train, TRAINING, side)?;
    let counts = [scoring.clips.div_ceil(2), scoring.clips / 2];
    for (split, count) in SPLITS.into_iter().zip(counts) {
        clips.extend(single(split, count, side)?);
    }
    let read = scoring.tokenized(
        clips.iter().map(HeldOut::clip),
        clips.len(),
        |tokenizer, frames| {
            let patches = tokenizer.patch_tokens(frames);
            let means: Tensor<3> = patches.clone().mean_dim(2).squeeze_dim(2);
            [means, tokenizer.resampler.forward(patches)]
        },
    )?;
    let targets: Rows = clips.iter().map(|clip| target(&object(clip))).collect();
    let [seen, told] = [0, 1].map(|which| {
        let batches = read.iter().map(|both| both[which].clone()).collect();
        let kernel = kernel(Tensor::cat(batches, 0));
        let fit = Fit::best(&kernel[..TRAINING], &targets[..TRAINING]);
        let told = kernel[TRAINING..].iter().map(|row| fit.read(row));
        told.collect::<Rows>()
    });

    let mut rows = Vec::new();
    let mut start = 0;
    for (split, count) in SPLITS.iter().zip(counts) {
        let range = start..start + count;
        start = range.end;
        let [seen, told] = [&seen, &told].map(|all| all[range.clone()].to_vec());
        let mut others = told.clone();
        others.rotate_left(1);
        for (what, told) in [
            ("the vision tower's patches", seen),
            ("**tokens**", told),
            ("tokens of another clip", others),
        ] {
            let mut row = vec![split.name().into(), count.into(), what.into()];
            row.extend(scores(&told, &targets[TRAINING..][range.clone()]));
            rows.push(row);
        }
    }
    Ok(vec![Table {
        title: "What tokens tell",
        note: NOTE.to_owned(),
        columns: vec![
            "split", "clips", "read", "colour", "shape", "size", "motion", "place",
        ],
        rows,
    }])
}

/// So many clips of a split that have one object.
fn single(split: Split, count: usize, side: usize) -> Result<Vec<HeldOut>> {
    let world = World {
        split,
        size: side,
        ..World::default()
    };
    world.check()?;
    let all = (0..).map(|number| HeldOut {
        world: world.clone(),
        number,
    });
    let single = all.filter(|clip| clip.scene().objects.len() == 1);
    Ok(single.take(count).collect())
}

fn object(clip: &HeldOut) -> Object {
    clip.scene().objects.swap_remove(0)
}

/// What the map should give: 1 where the truth is, 0 elsewhere, and the place.
fn target(object: &Object) -> Vec<f64> {
    let mut target = vec![0.0; TARGETS];
    let places = [
        Colour::ALL.iter().position(|it| *it == object.colour),
        Shape::ALL.iter().position(|it| *it == object.shape),
        Size::ALL.iter().position(|it| *it == object.size),
        Motion::ALL.iter().position(|it| *it == object.motion),
    ];
    for (place, first) in places.into_iter().flatten().zip(GROUPS) {
        target[first + place] = 1.0;
    }
    target[GROUPS[4]] = object.at[0].into();
    target[GROUPS[4] + 1] = object.at[1].into();
    target
}

/// Products of the tokens of all clips, `[clips, tokens, width]`, with those of the clips that the map is fitted on. The
/// tokens' mean is taken off, and a clip's product with itself is 1 on average.
fn kernel(tokens: Tensor<3>) -> Rows {
    let tokens: Tensor<2> = tokens.cast(DType::F32).flatten(1, 2);
    let fitted = tokens.clone().narrow(0, 0, TRAINING);
    let mean = fitted.mean_dim(0);
    let tokens = tokens - mean;
    let fitted = tokens.clone().narrow(0, 0, TRAINING);
    let scale: f32 = fitted.clone().square().sum_dim(1).mean().into_scalar();
    let products = tokens.matmul(fitted.transpose()) / scale.max(f32::MIN_POSITIVE);
    let values: Vec<f64> = products.into_data().iter::<f64>().collect();
    values.chunks(TRAINING).map(<[f64]>::to_vec).collect()
}

/// A fitted map.
struct Fit {
    /// Mean of each target.
    means: Vec<f64>,
    /// What the product with each fitted clip counts for, for each target.
    weights: Rows,
}

impl Fit {
    /// Fits on all clips, with the strength that is best for clips that are held back: one for each group of targets.
    fn best(kernel: &[Vec<f64>], targets: &[Vec<f64>]) -> Self {
        let count = targets.len() - targets.len() / HELD_BACK;
        let held_back: Vec<_> = kernel[count..].iter().zip(&targets[count..]).collect();
        let tried = RIDGES.map(|ridge| {
            let fit = Self::new(&kernel[..count], &targets[..count], ridge);
            let mut errors = [0.0; TARGETS];
            for (row, target) in &held_back {
                let told = fit.read(row);
                for (error, (a, b)) in errors.iter_mut().zip(told.iter().zip(*target)) {
                    *error += (a - b).powi(2);
                }
            }
            errors
        });
        let fits = RIDGES.map(|ridge| Self::new(kernel, targets, ridge));
        let mut weights = Vec::new();
        for group in GROUPS.windows(2) {
            let range = group[0]..group[1];
            let error = |place: &usize| tried[*place][range.clone()].iter().sum::<f64>();
            let best = (0..fits.len()).min_by(|a, b| error(a).total_cmp(&error(b)));
            let best = best.expect("there are several");
            weights.extend_from_slice(&fits[best].weights[range.clone()]);
        }
        let [Self { means, .. }, ..] = fits;
        Self { means, weights }
    }

    fn new(kernel: &[Vec<f64>], targets: &[Vec<f64>], ridge: f64) -> Self {
        let count = targets.len();
        let means: Vec<f64> = (0..TARGETS)
            .map(|target| targets.iter().map(|row| row[target]).sum::<f64>() / count as f64)
            .collect();
        let factor = cholesky(kernel, ridge);
        let weights = (0..TARGETS).map(|target| {
            let centred = targets.iter().map(|row| row[target] - means[target]);
            solve(&factor, centred.collect())
        });
        let weights = weights.collect();
        Self { means, weights }
    }

    /// The targets of a clip with these products.
    fn read(&self, row: &[f64]) -> Vec<f64> {
        let weights = self.weights.iter().zip(&self.means);
        weights
            .map(|(weights, mean)| mean + dot(weights, row))
            .collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The lower triangle whose product with its transpose is the square matrix of as many columns as rows, with `ridge`
/// added to its diagonal.
fn cholesky(matrix: &[Vec<f64>], ridge: f64) -> Rows {
    let mut factor: Rows = Vec::with_capacity(matrix.len());
    for (row, values) in matrix.iter().enumerate() {
        let mut line: Vec<f64> = Vec::with_capacity(row + 1);
        for column in 0..row {
            let other = &factor[column];
            let rest = values[column] - dot(&line, other);
            line.push(rest / other[column]);
        }
        let rest = values[row] + ridge - dot(&line, &line);
        line.push(rest.max(f64::EPSILON).sqrt());
        factor.push(line);
    }
    factor
}

/// Solves for the matrix that was factored.
fn solve(factor: &[Vec<f64>], mut values: Vec<f64>) -> Vec<f64> {
    for (row, line) in factor.iter().enumerate() {
        values[row] = (values[row] - dot(&line[..row], &values)) / line[row];
    }
    for (row, line) in factor.iter().enumerate().rev() {
        values[row] /= line[row];
        let value = values[row];
        for (rest, weight) in values[..row].iter_mut().zip(line) {
            *rest -= weight * value;
        }
    }
    values
}

/// Shares of colour, shape, size and motion that come out largest, and the explained variance of the place.
fn scores(told: &[Vec<f64>], targets: &[Vec<f64>]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for group in GROUPS.windows(2).take(4) {
        let range = group[0]..group[1];
        let mut right = Mean::default();
        for (told, target) in told.iter().zip(targets) {
            let [told, target] = [told, target].map(|values| largest(&values[range.clone()]));
            right.add(f64::from(u8::from(told == target)));
        }
        cells.push(Cell::percent(&[right], |right| *right));
    }
    let (mut error, mut variance) = (0.0, 0.0);
    for axis in GROUPS[4]..TARGETS {
        let mean = targets.iter().map(|row| row[axis]).sum::<f64>() / targets.len() as f64;
        for (told, target) in told.iter().zip(targets) {
            error += (told[axis] - target[axis]).powi(2);
            variance += (mean - target[axis]).powi(2);
        }
    }
    cells.push(Cell::Score(vec![100.0 * (1.0 - error / variance)], 1));
    cells
}

fn largest(values: &[f64]) -> Option<usize> {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_map_is_found() {
        // Three numbers for each of 40 clips; the first two targets are linear in them.
        let mut clips: Rows = (0..40)
            .map(|i| (1..4).map(|k| f64::from(i * k * k + k).sin()).collect())
            .collect();
        for axis in 0..3 {
            let mean = clips[..30].iter().map(|clip| clip[axis]).sum::<f64>() / 30.0;
            clips.iter_mut().for_each(|clip| clip[axis] -= mean);
        }
        let kernel: Rows = clips
            .iter()
            .map(|a| clips[..30].iter().map(|b| dot(a, b)).collect())
            .collect();
        let targets: Rows = clips
            .iter()
            .map(|clip| {
                let mut target = vec![0.0; TARGETS];
                target[0] = 2.0 * clip[0] - clip[1] + 0.5;
                target[1] = clip[2];
                target
            })
            .collect();
        let fit = Fit::new(&kernel[..30], &targets[..30], 1e-6);
        for (row, target) in kernel.iter().zip(&targets).skip(30) {
            let told = fit.read(row);
            assert!(
                (told[0] - target[0]).abs() < 0.1,
                "{} {}",
                told[0],
                target[0]
            );
            assert!(
                (told[1] - target[1]).abs() < 0.1,
                "{} {}",
                told[1],
                target[1]
            );
        }
    }
}
