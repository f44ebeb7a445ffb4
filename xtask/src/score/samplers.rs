//! Samplers, steps and guidance: quality against cost.

use std::time::Instant;

use anyhow::Result;
use divot::checkpoint::Part;
use divot::unet::Solver;
use divot::{GuidanceConfig, SamplingConfig};

use super::held_out::{HeldOut, held_out};
use super::networks::guided;
use super::sheets::{Entry, write};
use super::table::{Cell, Table};
use super::tally::{AGREEMENT, FIDELITY, Measured, Tally, agreement, fidelity};
use super::{Scoring, solver_name};

const SOLVERS: [Solver; 4] = [
    Solver::Ddim { eta: 1.0 },
    Solver::Ddim { eta: 0.0 },
    Solver::DpmSolverPlusPlus,
    Solver::UniPc,
];
const STEPS: [usize; 4] = [5, 10, 20, 50];
const GUIDANCE: [f64; 5] = [1.0, 1.5, 2.0, 3.0, 7.5];

/// Makes the table.
pub fn tables(scoring: &Scoring) -> Result<Vec<Table>> {
    let clips = held_out(scoring.clips, scoring.side()?)?;
    let tokens = scoring.tokens(clips.iter().map(HeldOut::clip), clips.len())?;
    let grey = scoring.grey()?;
    let mut decoder = scoring.decoder(Part::Detokenizer)?;

    let settings = SOLVERS.iter().flat_map(|&solver| {
        STEPS
            .iter()
            .flat_map(move |&steps| GUIDANCE.iter().map(move |&scale| (solver, steps, scale)))
    });
    let settings: Vec<_> = settings.collect();
    let passes_of = |&(_, steps, scale): &(Solver, usize, f64)| match scale {
        1.0 => steps,
        _ => 2 * steps,
    };
    // Progress is in passes of the UNet, since settings differ a lot in cost.
    let all: usize = settings.iter().map(passes_of).sum();
    let mut progress = scoring.progress("samplers", all * clips.len() * scoring.seeds.len());

    let mut rows = Vec::new();
    let mut sheet = vec![Entry {
        text: format!("{} itself", clips[0].name()),
        rows: vec![clips[0].frames()],
    }];
    for setting in settings {
        let (solver, steps, scale) = setting;
        decoder.sampling = SamplingConfig::new().with_steps(steps).with_solver(solver);
        decoder.guidance = guided(GuidanceConfig::new().with_scale(scale), &grey);
        let taken = decoder.sampling.check()?;
        progress.weight = passes_of(&setting);
        let mut tallies = Vec::new();
        let mut seconds = 0.0;
        for &seed in &scoring.seeds {
            let mut made = Vec::new();
            let started = Instant::now();
            decoder.decode(&tokens, seed, &mut progress, |_, frames| {
                made.push(frames);
                Ok(())
            })?;
            seconds += started.elapsed().as_secs_f64();
            let mut tally = Tally::default();
            for (clip, made) in clips.iter().zip(&made) {
                let oracle = &scoring.oracle;
                tally.add(&Measured::of(oracle, &clip.scene(), &clip.frames(), made)?);
            }
            if seed == scoring.seeds[0] {
                let name = solver_name(solver);
                sheet.push(Entry {
                    text: format!("{name}, {taken} steps, guidance {scale}"),
                    rows: vec![made.swap_remove(0)],
                });
            }
            tallies.push(tally);
        }
        let seconds = seconds / (clips.len() * scoring.seeds.len()) as f64;
        let passes = passes_of(&(solver, taken, scale));
        let mut row: Vec<Cell> = vec![
            solver_name(solver).as_str().into(),
            taken.into(),
            format!("{scale}").as_str().into(),
            passes.into(),
            Cell::Score(vec![seconds], 3),
        ];
        row.extend(fidelity(&tallies));
        row.extend(agreement(&tallies));
        rows.push(row);
    }
    if let Some(folder) = &scoring.sheets {
        write(folder, "samplers", &sheet)?;
    }
    let mut columns = vec!["sampler", "steps", "guidance", "passes", "s a clip"];
    columns.extend(FIDELITY);
    columns.extend(AGREEMENT);
    Ok(vec![Table {
        title: "Samplers",
        note: format!(
            "Reconstruction of {} held-out clips, half of each split, by the settings of each row, with the default \
             spacing of each sampler. A pass is a run of the UNet on one clip. Guidance takes two for each step, and \
             rescales {} of its prediction. Seconds include the decoding to frames, {} clips at a time.",
            clips.len(),
            GuidanceConfig::new().rescale,
            super::networks::AT_A_TIME,
        ),
        columns,
        rows,
    }])
}
