//! Text to video: clips from captions.

use anyhow::Result;
use burn::tensor::Tensor;
use divot::{Detokenizer, GenerationConfig, Task};
use divot_llm::Prompt;

use super::held_out::{HeldOut, SPLITS, held_out};
use super::networks::flow;
use super::sheets::{Entry, Gallery};
use super::table::{Cell, Table};
use super::tally::{Mean, Tally, quality};
use super::{Scoring, seed_of};

/// Sums over clips of a split, with one seed.
#[derive(Debug, Clone, Default)]
struct Sums {
    /// The clip against its own caption.
    made: Tally,
    /// The clip against the next caption.
    other: Tally,
    /// Of clips: the model began the clip by itself.
    begun: Mean,
}

/// Makes the table.
pub fn tables(scoring: &Scoring) -> Result<Vec<Table>> {
    let part = Detokenizer::adapted_part(scoring.pipeline.folder());
    let clips = held_out(scoring.clips, scoring.made_side(part)?)?;

    let (llm, name) = scoring.llm(Task::Generation)?;
    let mut progress = scoring.progress("clips from captions", clips.len() * scoring.seeds.len());
    let (mut features, mut sums) = (Vec::new(), Vec::new());
    for &seed in &scoring.seeds {
        let mut drawn = Vec::new();
        let mut splits: [Sums; 2] = Default::default();
        for (number, clip) in clips.iter().enumerate() {
            let caption = clip.world.caption(clip.number);
            let prompt = Prompt::generation(&llm.text, &caption).map_err(divot::Error::from)?;
            let config = GenerationConfig {
                seed: seed_of(seed, number as u64),
                ..scoring.generation.clone()
            };
            let scene = llm.generate(&prompt, &config, |_| flow())?;
            splits[clip.split()].begun.note(!scene.forced);
            drawn.push(scene.features);
            progress.advance(1)?;
        }
        features.push(Tensor::cat(drawn, 0));
        sums.push(splits);
    }
    drop(llm);

    let decoder = scoring.decoder(part)?;
    let mut galleries: [Gallery; 2] = Default::default();
    for ((&seed, features), sums) in scoring.seeds.iter().zip(&features).zip(&mut sums) {
        let name = format!("de-tokenizer with seed {seed}");
        let mut progress = scoring.progress(&name, clips.len());
        decoder.decode(features, seed, &mut progress, |place, made| {
            let clip: &HeldOut = &clips[place];
            let reading = scoring.oracle.read(&made);
            let verdict = reading.verdict(&clip.scene());
            let sums = &mut sums[clip.split()];
            sums.made.add_verdict(&verdict);
            let other = &clips[(place + 1) % clips.len()];
            sums.other.add_verdict(&reading.verdict(&other.scene()));
            if seed == scoring.seeds[0] {
                galleries[clip.split()].add(quality(&verdict), || Entry {
                    text: format!("{}: {:?}", clip.name(), clip.world.caption(clip.number)),
                    rows: vec![clip.frames(), made],
                });
            }
            Ok(())
        })?;
    }
    for (split, gallery) in SPLITS.iter().zip(&galleries) {
        let name = format!("generation-{}", split.name());
        gallery.write(scoring.sheets.as_deref(), &name)?;
    }
    Ok(vec![table(&clips, &sums, name, part.name())])
}

fn table(clips: &[HeldOut], sums: &[[Sums; 2]], llm: &str, detokenizer: &str) -> Table {
    let mut rows = Vec::new();
    for (place, split) in SPLITS.iter().enumerate() {
        let count = clips.iter().filter(|clip| clip.split() == place).count();
        let mut row = |name: &str, tally: &dyn Fn(&Sums) -> &Tally, begun: Cell| {
            let share =
                |of: fn(&Tally) -> Mean| Cell::percent(sums, |splits| of(tally(&splits[place])));
            rows.push(vec![
                split.name().into(),
                count.into(),
                name.into(),
                share(|tally| tally.count),
                share(|tally| tally.colour),
                share(|tally| tally.shape),
                share(|tally| tally.motion),
                share(|tally| tally.all_but_size),
                begun,
            ]);
        };
        let begun = Cell::percent(sums, |splits| splits[place].begun);
        row("**their caption**", &|sums| &sums.made, begun);
        row("another caption", &|sums| &sums.other, Cell::none());
    }
    Table {
        title: "Clips from captions",
        note: format!(
            "`{llm}` reads the caption of a held-out clip and draws the tokens of another, which `{detokenizer}` decodes. \
             The oracle reads it and is compared with what the caption is about, and with what the next caption is about, \
             which is chance. Captions mostly do not say sizes, so they are left out. The last column is the share of \
             clips that the model began by itself; the others were begun for it."
        ),
        columns: vec![
            "split", "clips", "against", "count", "colour", "shape", "motion", "all", "begun",
        ],
        rows,
    }
}
