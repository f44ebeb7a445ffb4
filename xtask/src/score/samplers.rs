//! Samplers, steps and guidance: quality against cost.

use std::time::Instant;

use anyhow::Result;
use divot::checkpoint::Part;
use divot::unet::{Solver, Spacing};
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
/// Steps without guidance.
const STEPS: [usize; 6] = [1, 2, 3, 5, 10, 20];
/// Guidance, which takes twice the time, and its steps.
const GUIDANCE: [f64; 3] = [1.5, 2.5, 7.5];
const GUIDED_STEPS: [usize; 2] = [2, 10];

/// How a row is decoded.
#[derive(Debug, Clone)]
struct Setting {
    sampling: SamplingConfig,
    guidance: GuidanceConfig,
    /// Steps that are taken.
    steps: usize,
}

impl Setting {
    fn new(sampling: SamplingConfig, guidance: GuidanceConfig) -> Result<Self> {
        let steps = sampling.check()?;
        Ok(Self {
            sampling,
            guidance,
            steps,
        })
    }

    fn spacing(&self) -> Spacing {
        let solver = self.sampling.solver;
        self.sampling.spacing.unwrap_or_else(|| solver.spacing())
    }

    /// Runs of the UNet on a clip.
    fn passes(&self) -> usize {
        match self.guidance.is_on() {
            true => 2 * self.steps,
            false => self.steps,
        }
    }

    fn decodes_like(&self, other: &Self) -> bool {
        let [one, other] = [self, other].map(|it| {
            let solver = it.sampling.solver;
            (solver, it.spacing(), it.steps, it.guidance.scale)
        });
        one == other
    }
}

/// The settings of all rows: each solver with all steps, and the model's own solver with guidance. Its own setting comes
/// last if it is not among them.
fn settings(own: &Setting) -> Result<Vec<Setting>> {
    let with = |solver: Solver, steps: usize, scale: f64| {
        let mut sampling = own.sampling.clone().with_solver(solver).with_steps(steps);
        if !matches!(solver, Solver::Ddim { .. }) {
            sampling.spacing = None;
        }
        Setting::new(sampling, own.guidance.with_scale(scale))
    };
    let mut all = Vec::new();
    for solver in SOLVERS {
        for steps in STEPS {
            all.push(with(solver, steps, 1.0)?);
        }
    }
    for steps in GUIDED_STEPS {
        for scale in GUIDANCE {
            all.push(with(own.sampling.solver, steps, scale)?);
        }
    }
    if !all.iter().any(|it| it.decodes_like(own)) {
        all.push(own.clone());
    }
    Ok(all)
}

fn spacing_name(spacing: Spacing) -> &'static str {
    match spacing {
        Spacing::Uniform => "uniform",
        Spacing::UniformTrailing => "trailing",
        Spacing::QuadraticTrailing => "quadratic",
    }
}

/// Makes the table.
pub fn tables(scoring: &Scoring) -> Result<Vec<Table>> {
    let decoding = &scoring.decoding;
    let own = Setting::new(decoding.sampling.clone(), decoding.guidance)?;
    let settings = settings(&own)?;
    let clips = held_out(scoring.clips, scoring.side()?)?;
    let tokens = scoring.tokens(clips.iter().map(HeldOut::clip), clips.len())?;
    let grey = scoring.grey()?;
    let mut decoder = scoring.decoder(Part::Detokenizer)?;

    // Progress is in passes of the UNet, since settings differ a lot in cost.
    let all: usize = settings.iter().map(Setting::passes).sum();
    let mut progress = scoring.progress("samplers", all * clips.len() * scoring.seeds.len());

    let mut rows = Vec::new();
    let mut sheet = vec![Entry {
        text: format!("{} itself", clips[0].name()),
        rows: vec![clips[0].frames()],
    }];
    for setting in &settings {
        decoder.sampling = setting.sampling.clone();
        decoder.guidance = guided(setting.guidance, &grey);
        progress.weight = setting.passes();
        let (steps, scale) = (setting.steps, setting.guidance.scale);
        let spacing = spacing_name(setting.spacing());
        let name = solver_name(setting.sampling.solver);
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
                sheet.push(Entry {
                    text: format!("{name}, {spacing}, {steps} steps, guidance {scale}"),
                    rows: vec![made.swap_remove(0)],
                });
            }
            tallies.push(tally);
        }
        let seconds = seconds / (clips.len() * scoring.seeds.len()) as f64;
        let name = match setting.decodes_like(&own) {
            true => format!("**{name}**"),
            false => name,
        };
        let mut row: Vec<Cell> = vec![
            name.as_str().into(),
            spacing.into(),
            steps.into(),
            format!("{scale}").as_str().into(),
            setting.passes().into(),
            Cell::Score(vec![seconds], 3),
        ];
        row.extend(fidelity(&tallies));
        row.extend(agreement(&tallies));
        rows.push(row);
    }
    if let Some(folder) = &scoring.sheets {
        write(folder, "samplers", &sheet)?;
    }
    let mut columns = vec![
        "sampler", "spacing", "steps", "guidance", "passes", "s a clip",
    ];
    columns.extend(FIDELITY);
    columns.extend(AGREEMENT);
    Ok(vec![Table {
        title: "Samplers",
        note: format!(
            "Reconstruction of {} held-out clips, half of each split, by the settings of each row. Sampler, steps and \
             guidance at the top hold only for the row in bold: they are the model's own, unless options change them. \
             DDIM has the spacing of that setting, and the others have their default one. A pass is a run of the UNet on \
             one clip. Guidance takes two for each step, and rescales {} of its prediction. Seconds include the decoding \
             to frames, {} clips at a time.",
            clips.len(),
            own.guidance.rescale,
            super::networks::AT_A_TIME,
        ),
        columns,
        rows,
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_models_own_setting_is_one_row() {
        let others = SOLVERS.len() * STEPS.len() + GUIDED_STEPS.len() * GUIDANCE.len();
        let ddim = SamplingConfig::new()
            .with_steps(2)
            .with_solver(Solver::Ddim { eta: 0.0 })
            .with_spacing(Some(Spacing::UniformTrailing));
        let alone = GuidanceConfig::new().with_scale(1.0);
        for (sampling, guidance, more) in [
            (ddim.clone(), alone, 0),
            (ddim.with_steps(4), alone, 1),
            (SamplingConfig::new(), GuidanceConfig::new(), 1),
        ] {
            let own = Setting::new(sampling, guidance).unwrap();
            let all = settings(&own).unwrap();
            assert_eq!(all.len(), others + more, "{own:?}");
            let alike = all.iter().filter(|it| it.decodes_like(&own));
            assert_eq!(alike.count(), 1, "{own:?}");
        }
    }
}
