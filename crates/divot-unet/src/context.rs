use burn::tensor::{DType, Tensor};
use divot_nn::{Inputs, TensorMapper};

/// The context that the frames of a clip attend to.
#[derive(Debug, Clone)]
// Tensors are handles, and few contexts exist at a time.
#[allow(clippy::large_enum_variant)]
pub enum Context {
    /// The same tokens for every frame, `[batch, tokens, context_dim]`, as in Divot. Tokens after
    /// [`UnetConfig::primary_context`](crate::UnetConfig::primary_context) use the second pair of keys and
    /// values.
    Shared(Tensor<3>),
    /// Text for all frames, and different tokens for each frame, as in DynamiCrafter. Text uses the first
    /// pair of keys and values, the tokens of frames the second.
    PerFrame {
        /// `[batch, text tokens, context_dim]`.
        text: Tensor<3>,
        /// `[batch, frames, tokens, context_dim]`.
        frames: Tensor<4>,
    },
}

impl From<Tensor<3>> for Context {
    fn from(tokens: Tensor<3>) -> Self {
        Self::Shared(tokens)
    }
}

impl Inputs for Context {
    fn map<M: TensorMapper>(self, mapper: &mut M) -> Self {
        match self {
            Self::Shared(tokens) => Self::Shared(mapper.map(tokens)),
            Self::PerFrame { text, frames } => Self::PerFrame {
                text: mapper.map(text),
                frames: mapper.map(frames),
            },
        }
    }
}

impl Context {
    /// Returns the element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Shared(tokens) | Self::PerFrame { text: tokens, .. } => tokens.dtype(),
        }
    }

    /// Returns the number of frames with their own tokens, or `None` if all frames share the same tokens.
    pub fn frames(&self) -> Option<usize> {
        match self {
            Self::Shared(_) => None,
            Self::PerFrame { frames, .. } => Some(frames.dims()[1]),
        }
    }

    /// Casts the context to another element type.
    pub fn cast(self, dtype: DType) -> Self {
        match self {
            Self::Shared(tokens) => Self::Shared(tokens.cast(dtype)),
            Self::PerFrame { text, frames } => Self::PerFrame {
                text: text.cast(dtype),
                frames: frames.cast(dtype),
            },
        }
    }

    /// Joins this context and `other`, of the same form and element type, to one batch. If `other` has
    /// batch 1, it is repeated.
    ///
    /// # Panics
    /// If one is shared and the other per frame, or their sizes differ.
    pub(crate) fn followed_by(self, other: Self) -> Self {
        match (self, other) {
            (Self::Shared(a), Self::Shared(b)) => {
                let b = b.expand(a.dims());
                Self::Shared(Tensor::cat(vec![a, b], 0))
            }
            (
                Self::PerFrame { text, frames },
                Self::PerFrame {
                    text: other_text,
                    frames: other_frames,
                },
            ) => {
                let other_text = other_text.expand(text.dims());
                let other_frames = other_frames.expand(frames.dims());
                Self::PerFrame {
                    text: Tensor::cat(vec![text, other_text], 0),
                    frames: Tensor::cat(vec![frames, other_frames], 0),
                }
            }
            _ => panic!("both contexts must be shared by all frames, or both be per frame"),
        }
    }
}
