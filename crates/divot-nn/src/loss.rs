use burn::tensor::Tensor;

/// A training loss as a sum and the number of its terms.
///
/// Sums and counts can be added over micro-batches of different sizes and over devices; means cannot. The
/// loss of the whole batch is the total sum divided by the total count.
#[derive(Debug, Clone)]
pub struct Loss {
    /// The sum over all terms, `[1]`, in f32. It carries the gradients.
    pub sum: Tensor<1>,
    /// The number of terms.
    pub count: usize,
}

impl Loss {
    /// Returns the mean over the terms, `[1]`. It is 0 if there are no terms.
    pub fn mean(self) -> Tensor<1> {
        self.sum / self.count.max(1) as f64
    }
}
