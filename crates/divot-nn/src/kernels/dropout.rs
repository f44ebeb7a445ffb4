use burn::backend::flex::FlexTensor;

use super::simd::by_chunks;
use super::{Kernel, contiguous, floats, shape, tensor};

/// Sets elements to zero at random, and scales the others. Which are kept is a function of the key and of the
/// element's place, so that nothing is stored for the backward pass.
#[derive(Debug)]
pub(crate) struct Dropout {
    pub rate: f64,
    pub key: [u32; 2],
}

impl Dropout {
    fn apply(&self, x: &FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let values = floats(&x);
        let dropped = (self.rate * 2f64.powi(32)) as u32;
        let scale = (1.0 / (1.0 - self.rate)) as f32;
        let [first, second] = self.key;
        let values = by_chunks(
            values.len(),
            #[inline(always)]
            |range, out| {
                let start = range.start as u32;
                for (i, (out, x)) in out.iter_mut().zip(&values[range]).enumerate() {
                    let place = start.wrapping_add(i as u32);
                    let drawn = mix(mix(place ^ first) ^ second);
                    *out = if drawn >= dropped { x * scale } else { 0.0 };
                }
            },
        );
        tensor(values, shape(&x))
    }
}

/// A permutation of the 32-bit numbers that looks random: the last step of MurmurHash3.
#[inline(always)]
fn mix(mut value: u32) -> u32 {
    value ^= value >> 16;
    value = value.wrapping_mul(0x85eb_ca6b);
    value ^= value >> 13;
    value = value.wrapping_mul(0xc2b2_ae35);
    value ^ (value >> 16)
}

impl Kernel for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, inputs: &[FlexTensor]) -> FlexTensor {
        self.apply(&inputs[0])
    }

    fn backward(&self, _: &[FlexTensor], grad: FlexTensor, _: &[bool]) -> Vec<Option<FlexTensor>> {
        vec![Some(self.apply(&grad))]
    }
}
