//! Opens and loads a language model.

use std::path::Path;

use divot_llm::{
    DivotLlm, DivotLlmConfig, LlmError, Projection, Prompt, Quantization, Shown, SpecialTokens,
    TextTokenizer,
};
use divot_nn::Recycler;

use super::VideoLlm;
use crate::checkpoint::{Checkpoint, Loading, Part, TEXT_TOKENIZER};
use crate::device;
use crate::error::{Error, Result};

/// What a language model is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Describing videos and answering questions.
    Comprehension,
    /// Generating clips and stories.
    Generation,
}

impl Task {
    /// Returns the parts that can do the task, the best first.
    pub fn parts(self) -> [Part; 4] {
        match self {
            Self::Comprehension => [
                Part::Comprehension,
                Part::Llm,
                Part::Generation,
                Part::Pretrained,
            ],
            Self::Generation => [
                Part::Generation,
                Part::Llm,
                Part::Pretrained,
                Part::Comprehension,
            ],
        }
    }

    /// Returns the best part for the task in a checkpoint.
    ///
    /// # Errors
    /// If there is no language model.
    pub fn part(self, checkpoint: &Path) -> Result<Part> {
        let mut parts = self.parts().into_iter();
        parts
            .find(|part| part.folder(checkpoint).is_dir())
            .ok_or_else(|| {
                let remedy = match self {
                    Self::Comprehension => "get one: `divot download llm-comprehension`, or convert one",
                    Self::Generation => {
                        "get one: `divot download llm-generation detokenizer-adapted`, or convert one"
                    }
                };
                Error::config(checkpoint, "has no language model", remedy)
            })
    }
}

/// A language model whose sizes and text tokenizer were read, but not its weights.
///
/// Prompts are encoded and checked here, before the slow [`load`](Self::load).
#[derive(Debug)]
pub struct OpenLlm {
    /// The part of the checkpoint.
    pub part: Part,
    /// Sizes.
    pub config: DivotLlmConfig,
    /// The text tokenizer.
    pub text: TextTokenizer,
    /// The tokens that mark video in text.
    pub tokens: SpecialTokens,
}

impl OpenLlm {
    /// Opens the best language model of a checkpoint for `task`.
    ///
    /// # Errors
    /// If there is none, or a file is missing, damaged, or does not match the others.
    pub fn best(checkpoint: &Checkpoint<'_>, task: Task) -> Result<Self> {
        Self::open(checkpoint, task.part(checkpoint.folder())?)
    }

    /// Opens the given part.
    ///
    /// # Errors
    /// If a file is missing, damaged, or does not match the others.
    pub fn open(checkpoint: &Checkpoint<'_>, part: Part) -> Result<Self> {
        let config: DivotLlmConfig = checkpoint.config(part)?;
        let path = part.folder(checkpoint.folder()).join(TEXT_TOKENIZER);
        let text = TextTokenizer::open(&path).map_err(LlmError::from)?;
        let tokens = SpecialTokens::of(&text, config.num_queries)?;
        if text.vocab_size() > config.llm.vocab_size {
            return Err(Error::config(
                &path,
                LlmError::Vocabulary {
                    tokens: text.vocab_size(),
                    rows: config.llm.vocab_size,
                }
                .to_string(),
                "the files in this folder belong together",
            ));
        }
        Ok(Self {
            part,
            config,
            text,
            tokens,
        })
    }

    /// Builds the prompt of a question about `shown`.
    ///
    /// # Errors
    /// If the question is empty, or too long for the model's window.
    pub fn question_prompt(&self, shown: Shown, question: &str) -> Result<Prompt> {
        self.fits(Prompt::question(&self.text, &self.tokens, shown, question)?)
    }

    /// Builds the prompt for generating a clip from a caption.
    ///
    /// # Errors
    /// If the caption is empty, or too long for the model's window.
    pub fn generation_prompt(&self, caption: &str) -> Result<Prompt> {
        self.fits(Prompt::generation(&self.text, caption)?)
    }

    /// Builds the prompt of a story.
    ///
    /// # Errors
    /// If the instruction is empty, or too long for the model's window.
    pub fn instruction_prompt(&self, instruction: &str) -> Result<Prompt> {
        self.fits(Prompt::instruction(&self.text, instruction)?)
    }

    fn fits(&self, prompt: Prompt) -> Result<Prompt> {
        let (tokens, window) = (prompt.ids.len(), self.config.llm.max_position_embeddings);
        match tokens < window {
            true => Ok(prompt),
            false => Err(LlmError::TooLong { tokens, window }.into()),
        }
    }

    /// Loads the weights.
    ///
    /// With `quantization`, the decoder's weights are kept in 8 or 4 bits. They are read and packed one
    /// matrix at a time, so that memory holds the packed model and one matrix. On the CPU, matrices that are
    /// stored in these bits are kept as they are.
    ///
    /// # Errors
    /// If a file is missing, damaged, or does not match the others; or if weights with LoRA are to be
    /// quantised.
    pub fn load(
        self,
        checkpoint: &mut Checkpoint<'_>,
        quantization: Option<Quantization>,
    ) -> Result<VideoLlm> {
        if quantization.is_some() && self.config.lora.is_some() {
            return Err(Error::config(
                &self.part.folder(checkpoint.folder()),
                "has LoRA beside its weights, which then cannot keep fewer bits",
                "merge it: convert the checkpoint again with LoRA merged",
            ));
        }
        let module = self.config.init(checkpoint.device());
        let model = match quantization {
            None => checkpoint.load(self.part, module)?,
            Some(quantization) => load_quantized(checkpoint, self.part, module, quantization)?,
        };
        let dtype = checkpoint.compute_dtype(model.llm.norm.gamma.val().dtype());
        Ok(VideoLlm {
            model,
            dtype,
            text: self.text,
            tokens: self.tokens,
        })
    }
}

/// Reads and packs the decoder one matrix at a time. Embeddings keep the stored type, or
/// are in f16 if they are stored in 8 bits; on the CPU, so do projections of video features.
fn load_quantized(
    checkpoint: &mut Checkpoint<'_>,
    part: Part,
    mut model: DivotLlm,
    quantization: Quantization,
) -> Result<DivotLlm> {
    let on_host = device::is_cpu(checkpoint.device());
    let mut loading = checkpoint.loading(part)?;
    let dtype = loading.dtype();
    // The CPU computes in f32 from any type.
    let matrices = if on_host { None } else { dtype };
    let quantize = |loading: &mut Loading<'_, '_>, prefix: &str, slot: &mut Projection| {
        if let (true, true, Projection::Dense(linear)) =
            (on_host, slot.can_quantize(on_host), &*slot)
            && let Some(packed) = loading.packed(prefix, linear, quantization)?
        {
            *slot = Projection::Packed(packed);
            return Ok(());
        }
        // Matrices to be packed are read in the stored type, which takes the least memory.
        let dtype = match slot.can_quantize(on_host) {
            true => None,
            false => dtype,
        };
        let weights = loading.fill(prefix, slot.clone(), dtype)?;
        *slot = weights.quantize(quantization, on_host);
        Ok::<_, Error>(())
    };
    // First what takes more memory while it is read than afterwards. Then the layers, of which most are only mapped.
    model.llm.embed_tokens = loading.fill("llm.embed_tokens.", model.llm.embed_tokens, None)?;
    model.llm.norm = loading.fill("llm.norm.", model.llm.norm, dtype)?;
    model.input_proj = loading.fill("input_proj.", model.input_proj, matrices)?;
    model.output_proj = loading.fill("output_proj.", model.output_proj, matrices)?;
    model.head = loading.fill("head.", model.head, matrices)?;
    // What they were restored from is of no size that the layers need.
    Recycler::release();
    for (i, layer) in model.llm.layers.iter_mut().enumerate() {
        let prefix = format!("llm.layers.{i}");
        for (name, slot) in layer.projections_mut() {
            quantize(&mut loading, &format!("{prefix}.{name}."), slot)?;
        }
        for (name, norm) in [
            ("input_layernorm", &mut layer.input_layernorm),
            (
                "post_attention_layernorm",
                &mut layer.post_attention_layernorm,
            ),
        ] {
            *norm = loading.fill(&format!("{prefix}.{name}."), norm.clone(), dtype)?;
        }
    }
    quantize(&mut loading, "llm.lm_head.", &mut model.llm.lm_head)?;
    loading.finish()?;
    Recycler::release();
    Ok(model)
}
