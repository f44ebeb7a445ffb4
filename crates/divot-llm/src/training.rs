//! Hidden states, head parameters and losses of training batches (paper, sections 3.2 and 3.3).

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};
use divot_gmm::TokenHead;
use divot_nn::{Loss, Noise};

use crate::model::{DivotLlm, QueryMechanism, select};
use crate::sequence::Sequence;

/// A training batch.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The rows. Shorter ones are padded at their end.
    pub sequences: Vec<Sequence>,
    /// Features to read, `[clips, tokens, width]`, in the order of the rows' `inputs`.
    pub inputs: Option<Tensor<3>>,
    /// Features to predict, `[clips, tokens, width]`, in the order of the rows' `outputs`.
    pub targets: Option<Tensor<3>>,
}

/// The two losses of a batch. The training recipe determines their weights.
#[derive(Debug, Clone)]
pub struct Losses {
    /// Cross-entropy of the text, over the learned tokens.
    pub lm: Loss,
    /// The head's loss, over the predicted features.
    pub head: Loss,
}

impl Batch {
    /// Returns the length of the longest row.
    fn length(&self) -> usize {
        let lengths = self.sequences.iter().map(Sequence::len);
        lengths.max().unwrap_or(0)
    }

    /// Returns indices into the tokens of the whole batch, including padding.
    fn places<'a>(
        &'a self,
        of: impl Fn(&'a Sequence) -> &'a [usize] + 'a,
    ) -> impl Iterator<Item = usize> + 'a {
        let length = self.length();
        let sequences = self.sequences.iter().enumerate();
        sequences.flat_map(move |(row, s)| of(s).iter().map(move |place| row * length + place))
    }
}

impl DivotLlm {
    /// Computes the hidden states of a batch, `[batch, tokens, hidden]`, in `dtype`.
    ///
    /// # Panics
    /// If the number of features differs from the number of places for them.
    pub fn hidden(&self, batch: &Batch, dtype: DType) -> Tensor<3> {
        let device = self.llm.norm.gamma.device();
        let length = batch.length();
        let rows: Vec<Sequence> = batch.sequences.iter().map(|s| s.padded(length)).collect();
        let ids: Vec<i32> = rows
            .iter()
            .flat_map(|s| s.ids.iter().map(|&id| id as i32))
            .collect();
        let data = TensorData::new(ids, [rows.len(), length]);
        let ids = Tensor::<2, Int>::from_data(data, &device);
        let mut embeds = self.llm.embed(ids, dtype);
        if let Some(features) = &batch.inputs {
            let places: Vec<usize> = batch.places(|s| &s.inputs).collect();
            embeds = self.replace(embeds, &places, features.clone());
        }
        if let Some(features) = &batch.targets
            && self.query_mechanism == QueryMechanism::Autoregressive
        {
            let places: Vec<usize> = batch.places(|s| &s.outputs).collect();
            embeds = self.replace(embeds, &places, features.clone());
        }
        let (roles, positions) = rows.into_iter().map(|s| (s.roles, s.positions)).unzip();
        let layout = self.layout(roles).with_positions(positions);
        self.llm.forward(embeds, &layout, None)
    }

    /// Computes the head's parameters of the features that a batch predicts, `[clips, tokens, params_dim]`,
    /// from its [`hidden`](Self::hidden) states. Returns `None` if the batch predicts none.
    ///
    /// # Panics
    /// If the hidden states belong to another batch, or if no token is before a clip that is predicted
    /// autoregressively.
    pub fn head_params(&self, hidden: Tensor<3>, batch: &Batch) -> Option<Tensor<3>> {
        let before = usize::from(self.query_mechanism == QueryMechanism::Autoregressive);
        let places: Vec<usize> = batch
            .places(|s| &s.outputs)
            .map(|place| {
                let seen = place.checked_sub(before);
                seen.expect("the first feature is predicted from `<frame>`")
            })
            .collect();
        if places.is_empty() {
            return None;
        }
        let clips = places.len() / self.num_queries;
        let width = hidden.dims()[2];
        let hidden = select(self.flat(hidden, batch), places);
        let hidden = hidden.reshape([clips, self.num_queries, width]);
        Some(self.output_proj.forward(hidden))
    }

    /// Computes the cross-entropy of the text, in nats, from [`hidden`](Self::hidden) states. Scores are
    /// computed only for learned tokens.
    ///
    /// # Panics
    /// If the hidden states belong to another batch.
    pub fn lm_loss(&self, hidden: Tensor<3>, batch: &Batch) -> Loss {
        let device = hidden.device();
        let length = batch.length();
        let learned = batch.sequences.iter().enumerate().flat_map(|(row, s)| {
            let next = s.labels.iter().skip(1).enumerate();
            next.filter_map(move |(index, label)| Some((row * length + index, (*label)?)))
        });
        let (places, labels): (Vec<usize>, Vec<u32>) = learned.unzip();
        let count = places.len();
        if count == 0 {
            let sum = Tensor::zeros([1], (&device, DType::F32));
            return Loss { sum, count };
        }
        let hidden = select(self.flat(hidden, batch), places).unsqueeze_dim::<3>(0);
        let scores = self.llm.logits(hidden).squeeze_dim::<2>(0);
        let labels: Vec<i32> = labels.into_iter().map(|id| id as i32).collect();
        let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, [count, 1]), &device);
        Loss {
            sum: log_softmax(scores, 1).gather(1, labels).sum().neg(),
            count,
        }
    }

    /// Computes the head's loss of the features that a batch predicts, from [`hidden`](Self::hidden)
    /// states.
    ///
    /// # Panics
    /// Those of [`head_params`](Self::head_params), or if the targets do not match the outputs.
    pub fn head_loss(&self, hidden: Tensor<3>, batch: &Batch, noise: &mut Noise) -> Loss {
        let device = hidden.device();
        match (self.head_params(hidden, batch), &batch.targets) {
            (Some(params), Some(targets)) => self.head.loss(params, targets.clone(), noise),
            (None, None) => Loss {
                sum: Tensor::zeros([1], (&device, DType::F32)),
                count: 0,
            },
            _ => panic!("a batch has targets if, and only if, its rows have outputs"),
        }
    }

    /// Computes both losses of a batch, in `dtype`. The losses themselves are in f32.
    ///
    /// # Panics
    /// Those of [`hidden`](Self::hidden) and [`head_loss`](Self::head_loss).
    pub fn forward(&self, batch: &Batch, dtype: DType, noise: &mut Noise) -> Losses {
        let hidden = self.hidden(batch, dtype);
        Losses {
            lm: self.lm_loss(hidden.clone(), batch),
            head: self.head_loss(hidden, batch, noise),
        }
    }

    /// Flattens `[batch, tokens, hidden]` to `[batch · tokens, hidden]`.
    fn flat(&self, hidden: Tensor<3>, batch: &Batch) -> Tensor<2> {
        let [rows, length, width] = hidden.dims();
        assert_eq!(
            [rows, length],
            [batch.sequences.len(), batch.length()],
            "hidden states of another batch"
        );
        hidden.reshape([rows * length, width])
    }
}
