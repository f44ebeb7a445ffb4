//! Divot-LLM: a decoder that reads video features through one projection and predicts them through
//! another (paper, section 3.2).

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Int, Tensor};
use divot_gmm::{Head, HeadConfig, SampleOptions, TokenHead};
use divot_nn::ops::{gelu, linear};
use divot_nn::{CheckSizes, Noise, SizeError, check_widths};

use crate::error::LlmError;
use crate::generate::Context;
use crate::layout::{Layout, Role};
use crate::lora::LoraConfig;
use crate::mistral::{Mistral, MistralConfig};
use crate::prompt::Prompt;

/// How the decoder predicts the features of a clip (an ablation of the paper).
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum QueryMechanism {
    /// One after another, each from the hidden state of the previous feature.
    Autoregressive,
    /// All at once, from learned queries that see the queries before them.
    Causal,
    /// All at once, from learned queries that see each other, as released.
    Bidirectional,
}

/// Sizes of a [`DivotLlm`].
#[derive(Config, Debug)]
pub struct DivotLlmConfig {
    /// The decoder.
    pub llm: MistralConfig,
    /// The head that features are sampled from.
    pub head: HeadConfig,
    /// Number of features of a clip.
    #[config(default = 64)]
    pub num_queries: usize,
    /// How the decoder predicts features.
    #[config(default = "QueryMechanism::Bidirectional")]
    pub query_mechanism: QueryMechanism,
    /// Low-rank adaptation of the weights, if any.
    #[config(default = "None")]
    pub lora: Option<LoraConfig>,
}

impl DivotLlmConfig {
    /// The released sizes.
    pub fn divot() -> Self {
        let head = divot_gmm::GmmConfig::new();
        Self::new(MistralConfig::mistral_7b(), HeadConfig::Gmm(head))
    }

    /// Initialises the model.
    pub fn init(&self, device: &Device) -> DivotLlm {
        let head = self.head.init(device);
        let hidden = self.llm.hidden_size;
        let llm = self.llm.init(device);
        DivotLlm {
            llm: match &self.lora {
                Some(lora) => llm.with_lora(lora),
                None => llm,
            },
            input_proj: FeatureProjection::new(head.dim(), hidden, device),
            output_proj: FeatureProjection::new(hidden, head.params_dim(), device),
            head,
            num_queries: self.num_queries,
            query_mechanism: self.query_mechanism,
            window: self.llm.max_position_embeddings,
        }
    }
}

impl CheckSizes for DivotLlmConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        self.llm.check_sizes()?;
        self.head.check_sizes()?;
        if let Some(lora) = &self.lora {
            lora.check_sizes()?;
        }
        check_widths(&[("num_queries", self.num_queries)])
    }
}

/// A projection between features and hidden states: linear, GELU, linear.
#[derive(Module, Debug)]
pub struct FeatureProjection {
    /// `[input]` → `[output]`.
    pub fc1: Linear,
    /// `[output]` → `[output]`.
    pub fc2: Linear,
}

impl FeatureProjection {
    fn new(input: usize, output: usize, device: &Device) -> Self {
        Self {
            fc1: LinearConfig::new(input, output).init(device),
            fc2: LinearConfig::new(output, output).init(device),
        }
    }

    /// Applies the projection: `[batch, tokens, input]` → `[batch, tokens, output]`, in the type of `x`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        linear(&self.fc2, gelu(linear(&self.fc1, x)))
    }
}

/// The language model that reads and predicts the features of video clips.
#[derive(Module, Debug)]
pub struct DivotLlm {
    /// The decoder.
    pub llm: Mistral,
    /// Features of the video tokenizer to embeddings.
    pub input_proj: FeatureProjection,
    /// Hidden states to the head's parameters.
    pub output_proj: FeatureProjection,
    /// The head that features are sampled from.
    pub head: Head,
    /// Number of features of a clip.
    pub num_queries: usize,
    #[module(skip)]
    pub(crate) query_mechanism: QueryMechanism,
    window: usize,
}

impl DivotLlm {
    /// Returns the number of positions of the model.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Returns the width of a feature.
    pub fn token_dim(&self) -> usize {
        self.head.dim()
    }

    /// Reads a prompt into a context.
    ///
    /// `features` are those of the prompt's clips, in order: `[clips, tokens, width]`.
    ///
    /// # Errors
    /// If the prompt is empty, the features do not fit the prompt or the model, or the window has no room
    /// left.
    pub fn read(
        &self,
        context: &mut Context,
        prompt: &Prompt,
        features: Option<Tensor<3>>,
    ) -> Result<(), LlmError> {
        let Some(&last) = prompt.ids.last() else {
            return Err(LlmError::Empty("prompt"));
        };
        let tokens = context.len() + prompt.ids.len();
        if tokens >= self.window {
            return Err(LlmError::TooLong {
                tokens,
                window: self.window,
            });
        }
        let expected = [prompt.clips.len(), self.num_queries, self.token_dim()];
        let found = match &features {
            Some(features) => features.dims(),
            None => [0, expected[1], expected[2]],
        };
        if found != expected {
            return Err(LlmError::Features {
                found: found.to_vec(),
                tokens: self.num_queries,
                width: self.token_dim(),
            });
        }
        let mut embeds = self.llm.embed_ids(&prompt.ids, context.dtype());
        if let Some(features) = features {
            let places: Vec<usize> = prompt
                .clips
                .iter()
                .flat_map(|&start| start..start + self.num_queries)
                .collect();
            embeds = self.replace(embeds, &places, features);
        }
        context.read(&self.llm, embeds, last);
        Ok(())
    }

    /// Samples the features of the next clip: `[1, tokens, width]`, in f32. The context must end with
    /// `<frame>`. It does not change.
    ///
    /// `frames` are the ids of the clip's tokens.
    ///
    /// # Errors
    /// If the window has no room left.
    pub fn predict_clip(
        &self,
        context: &mut Context,
        frames: &[u32],
        options: &SampleOptions,
        noise: &mut Noise,
    ) -> Result<Tensor<3>, LlmError> {
        let start = context.len();
        if start + frames.len() > self.window {
            return Err(LlmError::TooLong {
                tokens: start + frames.len(),
                window: self.window,
            });
        }
        let features = if self.query_mechanism == QueryMechanism::Autoregressive {
            let mut features = Vec::with_capacity(frames.len());
            for &frame in frames {
                let hidden = context.hidden().expect("<frame> was read").clone();
                let params = self.output_proj.forward(hidden);
                let feature = self.head.sample(params, options, noise);
                let embeds = self
                    .input_proj
                    .forward(feature.clone().cast(context.dtype()));
                context.read(&self.llm, embeds, frame);
                features.push(feature);
            }
            Tensor::cat(features, 1)
        } else {
            let roles = vec![vec![Role::Query { block: 0 }; frames.len()]];
            let embeds = self.llm.embed_ids(frames, context.dtype());
            let hidden = context.read_with(&self.llm, embeds, &self.layout(roles));
            self.head
                .sample(self.output_proj.forward(hidden), options, noise)
        };
        context.truncate(start);
        Ok(features.cast(DType::F32))
    }

    /// Creates a layout in which queries see each other if the model's queries do.
    pub(crate) fn layout(&self, roles: Vec<Vec<Role>>) -> Layout {
        let bidirectional = self.query_mechanism == QueryMechanism::Bidirectional;
        Layout::new(roles).with_causal_queries(!bidirectional)
    }

    /// Applies the input projection to features, `[clips, tokens, width]`, and puts them in place of
    /// embeddings, `[batch, tokens, hidden]`. `places` are indices into the tokens of the whole batch.
    pub(crate) fn replace(
        &self,
        embeds: Tensor<3>,
        places: &[usize],
        features: Tensor<3>,
    ) -> Tensor<3> {
        let [batch, length, hidden] = embeds.dims();
        let [clips, tokens, _] = features.dims();
        assert_eq!(
            clips * tokens,
            places.len(),
            "as many features as places for them"
        );
        let count = batch * length;
        let features = self.input_proj.forward(features.cast(embeds.dtype()));
        let features = features.reshape([clips * tokens, hidden]);
        let rows = embeds.reshape([count, hidden]);
        let mut sources: Vec<usize> = (0..count).collect();
        for (i, &place) in places.iter().enumerate() {
            sources[place] = count + i;
        }
        select(Tensor::cat(vec![rows, features], 0), sources).reshape([batch, length, hidden])
    }
}

/// Selects rows of a matrix.
pub(crate) fn select(rows: Tensor<2>, places: Vec<usize>) -> Tensor<2> {
    let places: Vec<i32> = places.into_iter().map(|place| place as i32).collect();
    let indices = Tensor::<1, Int>::from_data(places.as_slice(), &rows.device());
    rows.select(0, indices)
}
