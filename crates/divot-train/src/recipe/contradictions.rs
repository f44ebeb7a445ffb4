//! Values of a recipe that contradict each other, or that nothing would read.

use std::path::Path;

use divot::data::dataset::{Format, Manifest, SourceConfig};

use super::settings::{DataSettings, ObjectiveSettings, Settings};
use crate::error::Result;
use crate::objective::TaskKind;

/// The key of a value, and what is wrong with it.
type Problem = (String, String);

/// What the samples of a source are; of a cache, those of the source that it was made of.
pub(crate) struct Samples {
    pub format: Format,
    /// Whether they have texts.
    pub text: bool,
}

impl Samples {
    /// # Errors
    /// If a cache cannot be read.
    pub fn of(source: &SourceConfig) -> Result<Self> {
        let (mut format, mut text) = (source.format, source.text);
        if format == Format::Cache {
            let folder = source.path.first().map_or(Path::new(""), |path| path);
            let manifest = Manifest::read(folder)?;
            let value = |name| manifest.made_of.get(name).map(String::as_str);
            let of = value("source.format").and_then(|of| serde_json::from_str(of).ok());
            format = of.unwrap_or(format);
            text &= value("source.text") != Some("false");
        }
        Ok(Self {
            format,
            text: text && format != Format::Videos,
        })
    }

    /// Those of a source; of a cache that is not there yet, nothing is known but that it has texts.
    fn known(source: &SourceConfig) -> Self {
        Self::of(source).unwrap_or(Self {
            format: source.format,
            text: source.text,
        })
    }
}

/// What an objective learns.
struct Learns {
    /// Rows of a language model.
    rows: bool,
    /// Rows that tell of clips that are rebuilt.
    beside_diffusion: bool,
    /// Texts; without them, samples are of no use.
    texts: bool,
    /// Captions as they are, and no rows of them.
    captions: bool,
    /// Clips; without them, samples are of no use.
    clips: bool,
}

impl Learns {
    fn of(objective: &ObjectiveSettings) -> Self {
        use ObjectiveSettings as Kind;
        let beside_diffusion = matches!(
            objective,
            Kind::Diffusion {
                text_weight: Some(_),
                ..
            }
        );
        let language = matches!(objective, Kind::Language { .. });
        let adaptation = matches!(objective, Kind::Adaptation { .. });
        let captions = matches!(objective, Kind::Stage0 { .. } | Kind::Contrastive {});
        Self {
            rows: language || adaptation || beside_diffusion,
            beside_diffusion,
            texts: language || adaptation || captions,
            captions,
            clips: !language,
        }
    }
}

impl Settings {
    /// Keys of values that contradict others or that nothing would read, and why. `text` is the recipe.
    pub(super) fn contradictions(&self, text: &str, variational: bool) -> Vec<Problem> {
        let table: toml::Table = toml::from_str(text).unwrap_or_default();
        let given = |key: &str| {
            let mut names = key.split('.');
            let first = names.next().and_then(|name| table.get(name));
            let value = names.try_fold(first, |value, name| match value {
                Some(toml::Value::Array(items)) => Some(items.get(name.parse::<usize>().ok()?)),
                value => Some(value?.get(name)),
            });
            value.flatten().is_some()
        };
        let mut problems = self.of_objective(&given, variational);
        for (key, data) in self.sources() {
            problems.extend(self.of_source(&key, data, &given));
        }
        problems
    }

    fn of_objective(&self, given: &dyn Fn(&str) -> bool, variational: bool) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut refuse = |key: &str, problem: String| problems.push((key.to_owned(), problem));
        let language = matches!(self.objective, ObjectiveSettings::Language { .. });
        for name in ["sampling_steps", "guidance"] {
            let key = format!("objective.{name}");
            if language && !self.shows_clips() && given(&key) {
                let problem = format!(
                    "`{name}` is of clips that are shown, for which [model.start] is to name a `detokenizer`, and `data` clips"
                );
                refuse(&key, problem);
            }
        }
        if Learns::of(&self.objective).beside_diffusion {
            let mut sources = self.data.iter();
            if self.freezes_tokenizer() {
                let problem =
                    "`text_weight` is for a tokenizer that learns, and this one is frozen";
                refuse("objective.text_weight", problem.to_owned());
            } else if !sources.any(|data| Samples::known(&data.source).text) {
                let problem = "`text_weight` needs a source with text in `data`";
                refuse("objective.text_weight", problem.to_owned());
            }
        }
        let diffusion = matches!(self.objective, ObjectiveSettings::Diffusion { .. });
        if diffusion && !variational && given("objective.kl_weight") {
            let problem = "`kl_weight` is of a variational tokenizer, which this model has not";
            refuse("objective.kl_weight", problem.to_owned());
        }
        problems
    }

    /// What a recipe allows, and is seldom meant: parts that are not frozen, though their objective teaches them nothing.
    pub(super) fn not_frozen(&self) -> impl Iterator<Item = String> {
        use ObjectiveSettings as Kind;
        let held: &[(&str, &str)] = match self.objective {
            Kind::Diffusion { .. } | Kind::Stage0 { .. } => {
                &[("detokenizer.vae", "latents that shrink lower the loss")]
            }
            Kind::Adaptation { .. } => &[
                ("detokenizer.vae", "latents that shrink lower the loss"),
                ("llm", "features are drawn from it as it is"),
                ("tokenizer", "only dropped conditions reach it"),
            ],
            _ => &[],
        };
        let held = held.iter().filter(|(part, _)| match *part {
            "tokenizer" => !self.freezes_tokenizer(),
            part => !self.freezes(part),
        });
        held.map(|(part, why)| {
            format!(
                "`{part}` is not frozen, and this objective spoils it or teaches it nothing: {why}"
            )
        })
    }

    fn of_source(
        &self,
        source: &str,
        data: &DataSettings,
        given: &dyn Fn(&str) -> bool,
    ) -> Vec<Problem> {
        let learns = Learns::of(&self.objective);
        let samples = Samples::known(&data.source);
        let mut problems = Vec::new();
        let mut refuse = |name: &str, problem: &str| {
            problems.push((format!("{source}.{name}"), problem.to_owned()));
        };
        if learns.clips && samples.format == Format::Texts {
            let problem = "texts have no clips, which this objective learns from";
            refuse("source.format", problem);
        }
        if learns.texts && !samples.text {
            let problem = "this objective needs samples with text, and this source has none";
            let name = match samples.format {
                Format::Videos => "source.format",
                _ => "source.text",
            };
            refuse(name, problem);
        }
        let kind = match samples.format {
            Format::Questions => Some("questions are answered"),
            Format::Story => Some("stories are told"),
            Format::Texts => Some("texts are continued"),
            _ => None,
        };
        if learns.captions && matches!(samples.format, Format::Questions | Format::Story) {
            refuse("source.format", "this objective needs captions");
        }
        let adaptation = matches!(self.objective, ObjectiveSettings::Adaptation { .. });
        if adaptation && samples.format == Format::Questions {
            let problem =
                "adaptation is to features that are generated, and questions are answered";
            refuse("source.format", problem);
        }
        for (name, says) in [
            ("task", data.task.is_some()),
            ("instructions", data.instructions),
        ] {
            if let Some(kind) = kind.filter(|_| learns.rows && says) {
                let problem = format!("`{name}` is of captions, and {kind}; leave it out");
                refuse(name, &problem);
            }
        }
        for name in ["task", "instructions", "max_length"] {
            if !given(&format!("{source}.{name}")) {
                continue;
            }
            let without_rows = match (learns.rows, samples.text) {
                (false, _) => Some("which this objective has not"),
                (true, false) => Some("which need text, and this source has none"),
                (true, true) => None,
            };
            if let Some(problem) = without_rows {
                let problem = format!("`{name}` is of rows of a language model, {problem}");
                refuse(name, &problem);
            } else if source.starts_with("validation") {
                let problem = format!("`{name}` is that of the source of this number in `data`");
                refuse(name, &problem);
            }
        }
        let generates = data.task == Some(TaskKind::Generation);
        if learns.beside_diffusion && (generates || samples.format == Format::Story) {
            let name = if generates { "task" } else { "source.format" };
            let problem =
                "`text_weight` is of a language model that reads clips, and these are predicted";
            refuse(name, problem);
        }
        if adaptation && data.task == Some(TaskKind::Comprehension) {
            let problem = "adaptation is to features that are generated; leave `task` out";
            refuse("task", problem);
        }
        problems
    }
}
