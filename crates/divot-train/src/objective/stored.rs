//! What objectives learn from: frames, or what frozen networks made of them before.

use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};
use divot::data::dataset::{Array, Sample};
use divot::data::sampling::TOKENIZER_FRAMES;
use divot::data::{Frame, chw_to_clip};
use divot::{Detokenizer, Tokenizer};

use super::batch;
use crate::error::{Error, Result};

/// Patch tokens of a clip: `[frames, patches, width]`.
pub(crate) const PATCHES: &str = "patches";
/// Video tokens of a clip: `[tokens, width]`.
pub(crate) const TOKENS: &str = "tokens";
/// Means of a clip's latents, without the scale factor: `[channels, frames, height, width]`.
pub(crate) const MEAN: &str = "mean";
/// Logarithms of their variances, of the same shape.
pub(crate) const LOGVAR: &str = "logvar";

/// What video tokens are made of.
#[derive(Debug)]
pub enum Seen {
    /// `[clips, 5, 3, height, width]`, in [-1, 1]; of images, one frame.
    Frames(Tensor<5>),
    /// `[clips, 5, patches, width]`; of images, one frame.
    Patches(Tensor<4>),
    /// Nothing is left to be made: `[clips, tokens, width]`.
    Tokens(Tensor<3>),
}

impl Seen {
    /// That of each sample's first clip. A `variational` tokenizer draws tokens anew in each step, so that they are
    /// not taken where they are stored.
    ///
    /// # Errors
    /// If a sample has no clip, or clips differ in size.
    pub fn first(samples: &[Sample], variational: bool, device: &Device) -> Result<Self> {
        let stored: Vec<&Sample> = samples.iter().collect();
        match Self::stored(&stored, true, variational, device)? {
            Some(seen) => Ok(seen),
            None => Ok(Self::Frames(batch::sparse(samples, device)?)),
        }
    }

    /// The first frame alone, as an image. Stored tokens stay as they are.
    pub fn image(self) -> Self {
        match self {
            Self::Frames(frames) => Self::Frames(frames.narrow(1, 0, 1)),
            Self::Patches(patches) => Self::Patches(patches.narrow(1, 0, 1)),
            Self::Tokens(tokens) => Self::Tokens(tokens),
        }
    }

    /// That of all clips of all samples.
    ///
    /// # Errors
    /// If clips differ in size.
    pub fn all(samples: &[&Sample], device: &Device) -> Result<Self> {
        match Self::stored(samples, false, false, device)? {
            Some(seen) => Ok(seen),
            None => Ok(Self::Frames(batch::clips(samples, device)?)),
        }
    }

    fn stored(
        samples: &[&Sample],
        first: bool,
        variational: bool,
        device: &Device,
    ) -> Result<Option<Self>> {
        if !variational && let Some(tokens) = array(samples, TOKENS, first, device)? {
            return Ok(Some(Self::Tokens(tokens)));
        }
        let patches = array(samples, PATCHES, first, device)?;
        Ok(patches.map(Self::Patches))
    }

    /// Has what a mid-grey clip gives where `kept`, `[clips, 1, 1]`, is 0 instead of 1.
    pub fn keep(self, kept: &Tensor<3>, tokenizer: &Tokenizer) -> Self {
        let dropped = || kept.clone().neg() + 1.0;
        match self {
            Self::Frames(frames) => Self::Frames(frames * kept.clone().unsqueeze_dims(&[-1, -1])),
            Self::Patches(patches) => {
                let size = tokenizer.frame_size;
                let grey = Tensor::zeros([1, 1, 3, size, size], &kept.device());
                let grey = tokenizer.patch_tokens(grey).cast(DType::F32);
                let kept = kept.clone().unsqueeze_dim::<4>(3);
                Self::Patches(patches * kept + grey * dropped().unsqueeze_dim(3))
            }
            Self::Tokens(tokens) => {
                let grey = tokenizer.unconditional();
                Self::Tokens(tokens * kept.clone() + grey * dropped())
            }
        }
    }

    /// The patch tokens, `[clips, 5, patches, width]`. An image is five copies of itself.
    ///
    /// # Panics
    /// If there are only tokens.
    pub fn patches(self, tokenizer: &Tokenizer) -> Tensor<4> {
        let patches = match self {
            Self::Frames(frames) => tokenizer.patch_tokens(frames),
            Self::Patches(patches) => patches.cast(tokenizer.dtype),
            Self::Tokens(_) => panic!("tokens are not taken where they are drawn"),
        };
        match patches.dims()[1] {
            1 => patches.repeat_dim(1, TOKENIZER_FRAMES.len()),
            _ => patches,
        }
    }

    /// The tokens, `[clips, tokens, width]`.
    pub fn tokens(self, tokenizer: &Tokenizer) -> Tensor<3> {
        match self {
            Self::Tokens(tokens) => tokens,
            seen => {
                let patches = seen.patches(tokenizer);
                tokenizer.resampler.forward(patches).cast(DType::F32)
            }
        }
    }

    /// The tokens, computed clip after clip, so that what is computed of one is in memory at a time.
    pub fn tokens_by_clip(self, tokenizer: &Tokenizer) -> Tensor<3> {
        let clips: Vec<Self> = match self {
            Self::Frames(frames) => frames.split(1, 0).into_iter().map(Self::Frames).collect(),
            Self::Patches(patches) => {
                let clips = patches.split(1, 0).into_iter();
                clips.map(Self::Patches).collect()
            }
            Self::Tokens(tokens) => return tokens,
        };
        let tokens = clips.into_iter().map(|clip| clip.tokens(tokenizer));
        Tensor::cat(tokens.collect(), 0)
    }
}

/// Clips whose latents are drawn.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one is alive at a time")]
pub enum Clean {
    /// `[clips, 3, frames, height, width]`, in [-1, 1].
    Frames(Tensor<5>),
    /// Mean and logarithm of the variance, `[clips, channels, frames, height, width]` each.
    Moments([Tensor<5>; 2]),
}

impl Clean {
    /// The first clip of each sample.
    ///
    /// # Errors
    /// If a sample has no clip, or clips differ in size.
    pub fn first(samples: &[Sample], device: &Device) -> Result<Self> {
        let stored: Vec<&Sample> = samples.iter().collect();
        let [mean, logvar] = [MEAN, LOGVAR].map(|name| array(&stored, name, true, device));
        Ok(match (mean?, logvar?) {
            (Some(mean), Some(logvar)) => Self::Moments([mean, logvar]),
            _ => Self::Frames(batch::dense(samples, device)?),
        })
    }

    /// Number of frames of each clip.
    pub fn frames(&self) -> usize {
        let (Self::Frames(clip) | Self::Moments([clip, _])) = self;
        clip.dims()[2]
    }

    /// Keeps so many frames, evenly spread from the first to the last, or all if there are no more.
    pub fn spread(self, frames: usize) -> Self {
        let kept: Vec<i64> = spread(frames, self.frames())
            .map(|frame| frame as i64)
            .collect();
        let kept = Tensor::<1, Int>::from_data(kept.as_slice(), &self.device());
        let select = |clip: Tensor<5>| clip.select(2, kept.clone());
        match self {
            Self::Frames(clip) => Self::Frames(select(clip)),
            Self::Moments(moments) => Self::Moments(moments.map(select)),
        }
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        let (Self::Frames(clip) | Self::Moments([clip, _])) = self;
        clip.device()
    }

    /// Draws latents with noise of their shape.
    pub fn latents(self, detokenizer: &Detokenizer, noise: Tensor<5>) -> Tensor<5> {
        match self {
            Self::Frames(clip) => {
                let clip = clip.cast(detokenizer.dtype);
                detokenizer.vae.encode_clip(clip, Some(noise))
            }
            Self::Moments(moments) => detokenizer.vae.draw_latents(moments, noise),
        }
    }
}

/// So many `frames` of `all`, evenly spread from the first to the last; all if there are no more.
pub(super) fn spread(frames: usize, all: usize) -> impl Iterator<Item = usize> {
    let frames = frames.min(all);
    let gaps = frames.saturating_sub(1).max(1) as f64;
    let place = move |index| (index * all.saturating_sub(1)) as f64 / gaps;
    (0..frames).map(move |index| place(index).round() as usize)
}

/// The clip that a sample is of, to be shown: its frames, or what the autoencoder decodes its latents to. Returns
/// whether it was decoded, too; `None` if there is neither.
///
/// # Errors
/// If the stored latents have another form.
pub(super) fn shown(
    sample: &Sample,
    detokenizer: &Detokenizer,
) -> Result<Option<(Vec<Frame>, bool)>> {
    if let Some(clip) = sample.clips.first() {
        return Ok(Some((clip.frames().to_vec(), false)));
    }
    let device = detokenizer.unet.conv_in.weight.device();
    let Some(mean) = array::<5>(&[sample], MEAN, true, &device)? else {
        return Ok(None);
    };
    let video = detokenizer.decode(mean * detokenizer.vae.scale_factor);
    let video = video.squeeze_dim::<4>(0).swap_dims(0, 1);
    let shape = video.dims();
    let values: Vec<f32> = video.into_data().iter::<f32>().collect();
    Ok(Some((chw_to_clip(&values, shape)?, true)))
}

/// A stored array of samples' clips, or of the `first` clip of each, one after another; `None` if the first sample
/// has none.
fn array<const D: usize>(
    samples: &[&Sample],
    name: &str,
    first: bool,
    device: &Device,
) -> Result<Option<Tensor<D>>> {
    fn named<'a>(sample: &'a Sample, name: &str) -> Option<&'a Array> {
        sample.stored.as_ref()?.arrays.get(name)
    }
    let Some(form) = samples.first().and_then(|sample| named(sample, name)) else {
        return Ok(None);
    };
    let mut shape = form.shape.clone();
    let mut values = Vec::new();
    let mut clips = 0;
    for sample in samples {
        let array = named(sample, name).filter(|array| {
            array.shape.len() == D && array.shape[1..] == form.shape[1..] && array.shape[0] > 0
        });
        let array = array.ok_or_else(|| {
            unfit(
                sample,
                &format!("has no `{name}` of the size of the clip before it"),
            )
        })?;
        let count = if first { 1 } else { array.shape[0] };
        values.extend_from_slice(&array.values[..array.values.len() / array.shape[0] * count]);
        clips += count;
    }
    shape[0] = clips;
    let data = TensorData::new(values, Shape::from(shape));
    Ok(Some(Tensor::from_data(data, (device, DType::F32))))
}

fn unfit(sample: &Sample, problem: &str) -> Error {
    let remedy = "give clips of one kind and size to this objective";
    Error::run(sample.key.as_ref(), problem, remedy)
}
