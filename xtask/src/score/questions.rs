//! Questions about clips and captions of them, with the model seeing the clip, nothing, or another clip.

use std::sync::Arc;

use anyhow::Result;
use burn::tensor::Tensor;
use divot::{Chat, GenerationConfig, Task, VideoLlm};
use divot_data::dataset::Turn;
use divot_data::world::Asking;
use divot_llm::{Prompt, Shown};

use super::answers::{Described, KINDS, choices, is_right, kind, normal, usual_answers};
use super::held_out::{HeldOut, SPLITS, held_out};
use super::networks::flow;
use super::reconstruction::in_words;
use super::sheets::{Entry, Gallery, write_text};
use super::table::{Cell, Table};
use super::tally::Mean;
use super::{Scoring, seed_of};

/// What the model is asked for a caption with: one of the phrasings of training.
const CAPTION: &str = "Describe the video.";
/// Wrong answers that are listed.
const WRONG: usize = 60;

/// What the model sees in place of the clip, in the order of columns.
const SEEN: [Seen; 3] = [Seen::Clip, Seen::Grey, Seen::Another];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// The clip.
    Clip,
    /// A mid-grey clip.
    Grey,
    /// The next clip.
    Another,
}

/// A question about a clip.
struct Question {
    /// The place of the clip.
    clip: usize,
    /// The place of its kind.
    kind: usize,
    turn: Turn,
    /// What guessing without a look is right with.
    chance: f64,
}

/// Makes the tables.
pub fn tables(scoring: &Scoring) -> Result<Vec<Table>> {
    let clips = held_out(scoring.clips, scoring.read_side()?)?;
    let tokens = scoring.tokens(clips.iter().map(HeldOut::clip), clips.len())?;
    let grey = scoring.grey()?;
    let (llm, part) = scoring.llm(Task::Comprehension)?;
    let asker = Asker {
        llm: Arc::new(llm),
        generation: &scoring.generation,
        tokens,
        grey,
    };
    let mut tables = Vec::new();
    for (asking, title) in [
        (Asking::Choice, "Questions with four choices"),
        (Asking::Open, "Open questions"),
    ] {
        let questions = questions(&clips, asking);
        let right = ask(scoring, &asker, &clips, &questions, title)?;
        tables.push(question_table(title, part, &clips, &questions, &right));
    }
    tables.push(captions(scoring, &asker, &clips, part)?);
    Ok(tables)
}

/// The language model with the tokens of the clips.
struct Asker<'a> {
    llm: Arc<VideoLlm>,
    generation: &'a GenerationConfig,
    tokens: Tensor<3>,
    grey: Tensor<3>,
}

impl Asker<'_> {
    /// What the model says to a question about a clip.
    fn answer(&self, question: &str, clip: usize, seen: Seen, seed: u64) -> Result<String> {
        let count = self.tokens.dims()[0];
        let features = match seen {
            Seen::Clip => self.tokens.clone().narrow(0, clip, 1),
            Seen::Another => self.tokens.clone().narrow(0, (clip + 1) % count, 1),
            Seen::Grey => self.grey.clone(),
        };
        let (text, tokens) = (&self.llm.text, &self.llm.tokens);
        let prompt = Prompt::question(text, tokens, Shown::Video(1), question)
            .map_err(divot::Error::from)?;
        let config = GenerationConfig {
            seed,
            ..self.generation.clone()
        };
        let mut chat = Chat::new(self.llm.clone(), config);
        Ok(chat.start(&prompt, Some(features), |_| flow())?.text)
    }
}

/// Seeds with which the model is asked. The controls, which tell less from one seed to the next, take the first.
fn seeds(scoring: &Scoring, seen: Seen) -> &[u64] {
    match seen {
        Seen::Clip => &scoring.seeds,
        _ => &scoring.seeds[..1],
    }
}

/// All questions about clips.
fn questions(clips: &[HeldOut], asking: Asking) -> Vec<Question> {
    let usual = usual_answers();
    let mut questions = Vec::new();
    for (place, clip) in clips.iter().enumerate() {
        for turn in clip.world.questions(clip.number, asking) {
            let Some(kind) = kind(&turn.question) else {
                unreachable!("every question of the world has a kind")
            };
            let chance = match choices(&turn.question) {
                Some(count) => 1.0 / count as f64,
                None => f64::from(u8::from(usual[kind] == normal(&turn.answer))),
            };
            questions.push(Question {
                clip: place,
                kind,
                turn,
                chance,
            });
        }
    }
    questions
}

/// Whether each question is answered right: `right[seen][seed][question]`.
type Right = [Vec<Vec<bool>>; SEEN.len()];

fn ask(
    scoring: &Scoring,
    asker: &Asker<'_>,
    clips: &[HeldOut],
    questions: &[Question],
    title: &str,
) -> Result<Right> {
    let rounds: usize = SEEN.iter().map(|&seen| seeds(scoring, seen).len()).sum();
    let mut progress = scoring.progress(&title.to_lowercase(), rounds * questions.len());
    let mut wrong = String::new();
    let mut right = Right::default();
    for (place, seen) in SEEN.into_iter().enumerate() {
        for (round, &seed) in seeds(scoring, seen).iter().enumerate() {
            let mut answered = Vec::with_capacity(questions.len());
            for (number, question) in questions.iter().enumerate() {
                let seed = seed_of(seed, number as u64);
                let asked = &question.turn.question;
                let answer = asker.answer(asked, question.clip, seen, seed)?;
                let is_right = is_right(&question.turn, &answer);
                if (place, round) == (0, 0) && !is_right && wrong.lines().count() < WRONG {
                    let clip = &clips[question.clip];
                    wrong += &format!(
                        "- {} ({}): {:?}, right is {:?}, said was {answer:?}\n",
                        clip.name(),
                        in_words(&clip.scene()),
                        asked,
                        question.turn.answer
                    );
                }
                answered.push(is_right);
                progress.advance(1)?;
            }
            right[place].push(answered);
        }
    }
    if let Some(folder) = &scoring.sheets {
        let name = title.to_lowercase().replace(' ', "-");
        write_text(
            folder,
            &name,
            &format!("The first wrong answers:\n\n{wrong}"),
        )?;
    }
    Ok(right)
}

fn question_table(
    title: &'static str,
    part: &str,
    clips: &[HeldOut],
    questions: &[Question],
    right: &Right,
) -> Table {
    let row = |name: &str, wanted: &dyn Fn(&Question) -> bool| {
        let chosen: Vec<usize> = (0..questions.len())
            .filter(|&number| wanted(&questions[number]))
            .collect();
        let share = |answered: &Vec<bool>| {
            let mut mean = Mean::default();
            chosen
                .iter()
                .for_each(|&number| mean.note(answered[number]));
            mean
        };
        let mut chance = Mean::default();
        chosen
            .iter()
            .for_each(|&number| chance.add(questions[number].chance));
        let mut row: Vec<Cell> = vec![name.into(), chosen.len().into()];
        row.extend(right.iter().map(|seeds| Cell::percent(seeds, share)));
        row.push(Cell::percent(&[chance], |chance| *chance));
        row
    };
    let mut rows = Vec::new();
    for (place, kind) in KINDS.iter().enumerate() {
        if questions.iter().any(|question| question.kind == place) {
            rows.push(row(kind, &|question| question.kind == place));
        }
    }
    for (place, split) in SPLITS.iter().enumerate() {
        let name = format!("all, {}", split.name());
        rows.push(row(&name, &|question| {
            clips[question.clip].split() == place
        }));
    }
    rows.push(row("**all**", &|_| true));
    let rule = match questions.first().and_then(|it| choices(&it.turn.question)) {
        Some(_) => {
            "An answer is right if it is the right letter and nothing else. Chance is one in four."
        }
        None => {
            "An answer is right if it is the world's in the same words (case, punctuation and articles do not count) \
                 or claims the same objects or the same motion in others. Chance is the most frequent answer of training \
                 to such questions."
        }
    };
    Table {
        title,
        note: format!(
            "Shares of questions that `{part}` answers right. Each is asked by itself. {rule} Beside the clip, the same \
             questions are asked with a mid-grey clip and with another clip in its place (first seed)."
        ),
        columns: vec![
            "kind",
            "questions",
            "clip",
            "grey",
            "another clip",
            "chance",
        ],
        rows,
    }
}

/// Sums over captions.
#[derive(Debug, Clone, Copy, Default)]
struct Captions {
    right: Mean,
    objects: Mean,
}

fn captions(scoring: &Scoring, asker: &Asker<'_>, clips: &[HeldOut], part: &str) -> Result<Table> {
    let rounds: usize = SEEN.iter().map(|&seen| seeds(scoring, seen).len()).sum();
    let mut progress = scoring.progress("captions", rounds * clips.len());
    let mut gallery = Gallery::default();
    // By split, what is seen, and seed.
    let mut sums: [[Vec<Captions>; SEEN.len()]; 2] = Default::default();
    for (place, seen) in SEEN.into_iter().enumerate() {
        for (round, &seed) in seeds(scoring, seen).iter().enumerate() {
            let mut splits = [Captions::default(); 2];
            for (number, clip) in clips.iter().enumerate() {
                let caption = asker.answer(CAPTION, number, seen, seed_of(seed, number as u64))?;
                let scene = clip.scene();
                let it = Described::of(&caption, &scene);
                let sums = &mut splits[clip.split()];
                sums.right.note(it.right);
                for object in 0..it.objects {
                    sums.objects.note(object < it.described);
                }
                if (place, round) == (0, 0) {
                    let share = it.described as f64 / it.objects as f64;
                    gallery.add(share + f64::from(u8::from(it.right)), || Entry {
                        text: format!("{}, {}: {caption:?}", clip.name(), in_words(&scene)),
                        rows: vec![clip.frames()],
                    });
                }
                progress.advance(1)?;
            }
            for (sums, split) in sums.iter_mut().zip(splits) {
                sums[place].push(split);
            }
        }
    }
    gallery.write(scoring.sheets.as_deref(), "captions")?;
    let mut rows = Vec::new();
    for (place, split) in SPLITS.iter().enumerate() {
        let count = clips.iter().filter(|clip| clip.split() == place).count();
        let mut row: Vec<Cell> = vec![split.name().into(), count.into()];
        for sums in &sums[place] {
            row.push(Cell::percent(sums, |sums| sums.right));
        }
        row.push(Cell::percent(&sums[place][0], |sums| sums.objects));
        rows.push(row);
    }
    Ok(Table {
        title: "Captions",
        note: format!(
            "What `{part}` says to \"{CAPTION}\". A caption is right if all that it claims of colours, shapes, sizes and \
             motions is true, and it says so of every object; the last column is the share of objects of which it does. \
             Beside the clip, the model sees a mid-grey clip and another clip in its place (first seed)."
        ),
        columns: vec!["split", "clips", "clip", "grey", "another clip", "objects"],
        rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model that answers as the truth is scores all, whatever it is shown; one that answers what the next question
    /// asks for does not.
    #[test]
    fn shares_are_of_the_chosen_questions() {
        let clips = held_out(60, 64).unwrap();
        let questions = questions(&clips, Asking::Choice);
        let answered = |shift: usize| -> Vec<bool> {
            let others = (0..questions.len()).map(|at| (at + shift) % questions.len());
            let pairs = questions.iter().zip(others);
            pairs
                .map(|(question, other)| is_right(&question.turn, &questions[other].turn.answer))
                .collect()
        };
        let right = [vec![answered(0); 2], vec![answered(7)], vec![answered(11)]];
        let table = question_table("Title", "llm", &clips, &questions, &right);
        assert_eq!(table.rows.len(), 6 + 3, "{:?}", table.rows);
        for row in &table.rows {
            let Cell::Score(seen, _) = &row[2] else {
                panic!("a share is a score")
            };
            assert_eq!(seen[..], [100.0, 100.0]);
            let Cell::Score(chance, _) = &row[5] else {
                panic!("chance is a score")
            };
            assert_eq!(chance[..], [25.0]);
        }
        let last = &table.rows[table.rows.len() - 1];
        for column in [3, 4] {
            let Cell::Score(control, _) = &last[column] else {
                panic!("a share is a score")
            };
            assert!((10.0..40.0).contains(&control[0]), "{control:?}");
        }
    }
}
