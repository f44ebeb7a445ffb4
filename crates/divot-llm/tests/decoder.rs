//! The decoder and the functions built on it, with small random weights.

use std::ops::ControlFlow;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Distribution, Gradients, Tensor};
use divot_gmm::{GmmConfig, HeadConfig, Noise, RegressionConfig, SampleOptions};
use divot_llm::{
    Batch, Context, DivotLlm, DivotLlmConfig, FinishReason, KvCache, Layout, LlmError, LoraConfig,
    LoraTarget, Mistral, MistralConfig, Projection, Prompt, Quantization, QueryMechanism, Role,
    Rules, Sequence, TextSampling,
};

const DIM: usize = 6;
const QUERIES: usize = 4;

fn decoder() -> MistralConfig {
    MistralConfig::new(40, 32, 48, 2, 4, 2).with_sliding_window(None)
}

fn device(seed: u64) -> Device {
    let device = Device::flex();
    device.seed(seed);
    device
}

fn close(a: Tensor<3>, b: Tensor<3>, limit: f64) {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b.clone()).square().sum().into_scalar::<f64>();
    let norm = b.square().sum().into_scalar::<f64>();
    let error = (difference / norm).sqrt();
    assert!(error <= limit, "the relative error is {error:.1e}");
}

fn causal(tokens: usize) -> Layout {
    Layout::causal(1, tokens)
}

fn embed(model: &Mistral, ids: &[u32]) -> Tensor<3> {
    model.embed_ids(ids, DType::F32)
}

fn empty(model: &Mistral) -> Context {
    Context::new(model, 1, DType::F32)
}

fn ids(count: usize) -> Vec<u32> {
    (0..count).map(|i| (7 * i as u32 + 3) % 40).collect()
}

fn whole(model: &Mistral, ids: &[u32]) -> Tensor<3> {
    model.forward(embed(model, ids), &causal(ids.len()), None)
}

#[test]
fn what_is_remembered_changes_nothing() {
    let model = decoder().init(&device(1));
    let ids = ids(300);
    let expected = whole(&model, &ids);
    for room in [1, 300, 1000] {
        let mut cache = KvCache::new(model.layers.len(), room);
        let pieces: Vec<Tensor<3>> = [0..5, 5..6, 6..280, 280..300]
            .into_iter()
            .map(|piece| {
                let count = piece.len();
                let embeds = embed(&model, &ids[piece]);
                model.forward(embeds, &causal(count), Some(&mut cache))
            })
            .collect();
        assert_eq!(cache.len(), 300);
        close(Tensor::cat(pieces, 1), expected.clone(), 1e-5);
    }
}

#[test]
fn a_cache_in_f16_changes_little() {
    let model = decoder().init(&device(1));
    let ids = ids(300);
    let mut cache = KvCache::new(model.layers.len(), 1).with_dtype(DType::F16);
    let pieces = [0..280, 280..281, 281..300].map(|piece| {
        let count = piece.len();
        let embeds = embed(&model, &ids[piece]);
        model.forward(embeds, &causal(count), Some(&mut cache))
    });
    let hidden = Tensor::cat(pieces.to_vec(), 1);
    assert_eq!(hidden.dtype(), DType::F32);
    let expected = whole(&model, &ids);
    close(hidden.clone(), expected.clone(), 1e-3);
    // What was remembered is rounded.
    let difference = (hidden - expected).abs().max();
    assert!(difference.into_scalar::<f32>() > 0.0);
}

#[test]
fn room_is_made_by_doubling() {
    let model = decoder().init(&device(2));
    let mut cache = KvCache::new(model.layers.len(), 10);
    let mut capacities = Vec::new();
    for id in ids(600) {
        model.forward(embed(&model, &[id]), &causal(1), Some(&mut cache));
        capacities.push(cache.capacity());
    }
    capacities.dedup();
    assert_eq!(capacities, [256, 512, 1024]);
}

#[test]
fn what_is_forgotten_is_gone() {
    let model = decoder().init(&device(3));
    let ids = ids(20);
    let mut cache = KvCache::new(model.layers.len(), 1);
    let read = |ids: &[u32], cache: &mut KvCache| {
        model.forward(embed(&model, ids), &causal(ids.len()), Some(cache))
    };
    read(&ids[..10], &mut cache);
    read(&[1, 2, 3], &mut cache);
    cache.truncate(10);
    let hidden = read(&ids[10..], &mut cache);
    close(hidden, whole(&model, &ids).narrow(1, 10, 10), 1e-5);
}

#[test]
fn padding_changes_nothing_for_the_rest() {
    let model = decoder().init(&device(4));
    let ids = ids(9);
    let mut row = ids.clone();
    row.extend([0, 0, 0]);
    let embeds = Tensor::cat(vec![embed(&model, &row), embed(&model, &row)], 0);
    let mut padded = vec![Role::Causal; 12];
    padded[9..].fill(Role::Padding);
    let layout = Layout::new(vec![vec![Role::Causal; 12], padded]);
    let hidden = model.forward(embeds, &layout, None);
    let alone = whole(&model, &ids);
    close(
        hidden.clone().narrow(0, 1, 1).narrow(1, 0, 9),
        alone.clone(),
        1e-5,
    );
    close(hidden.narrow(0, 0, 1).narrow(1, 0, 9), alone, 1e-5);
}

#[test]
fn the_window_hides_what_is_far() {
    let near = decoder().with_sliding_window(Some(3));
    let model = near.init(&device(5));
    let mut other = ids(10);
    let hidden = whole(&model, &other);
    other[0] = 39;
    let changed = whole(&model, &other);
    // Two layers see two windows back, including the position itself.
    let last = |x: &Tensor<3>| x.clone().narrow(1, 5, 5);
    close(last(&changed), last(&hidden), 1e-6);
    let difference = (changed.narrow(1, 4, 1) - hidden.narrow(1, 4, 1))
        .abs()
        .sum();
    assert!(difference.into_scalar::<f32>() > 1e-3);
}

#[test]
fn the_type_to_compute_in_is_said() {
    struct Cast(DType);
    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.cast(self.0))
        }
    }
    let model = decoder().init(&device(15));
    let ids = ids(9);
    let expected = whole(&model, &ids);
    let run = |model: &Mistral, dtype: DType| {
        let mut context = Context::new(model, 1, dtype);
        let embeds = model.embed_ids(&ids, context.dtype());
        let hidden = context.read_with(model, embeds, &causal(ids.len()));
        assert_eq!(hidden.dtype(), dtype);
        assert_eq!(model.logits(hidden.clone()).dtype(), DType::F32);
        hidden.cast(DType::F32)
    };
    close(run(&model, DType::F32), expected.clone(), 1e-7);
    close(run(&model, DType::BF16), expected.clone(), 0.03);
    // Weights of another type, including norms.
    let half = model.clone().map(&mut Cast(DType::BF16));
    let rounded = half.clone().map(&mut Cast(DType::F32));
    let expected = whole(&rounded, &ids);
    close(run(&half, DType::F32), expected.clone(), 1e-6);
    close(run(&half, DType::BF16), expected, 0.03);
}

// ---- LoRA

fn lora_model(device: &Device) -> (Mistral, Mistral) {
    let plain = decoder().init(device);
    let config = LoraConfig::new().with_rank(3).with_alpha(7.0);
    let adapted = plain.clone().with_lora(&config);
    (plain, adapted)
}

/// Makes B nonzero, as after some training.
fn train_b(mut model: Mistral, device: &Device) -> Mistral {
    for layer in &mut model.layers {
        for projection in [&mut layer.self_attn.q_proj, &mut layer.mlp.down_proj] {
            if let Projection::Lora(lora) = projection {
                let shape = lora.lora_b.weight.dims();
                let b = Tensor::random(shape, Distribution::Normal(0.0, 0.3), device);
                lora.lora_b.weight = Param::from_tensor(b);
            }
        }
    }
    model
}

#[test]
fn lora_starts_without_effect_and_merges_with_it() {
    let device = device(6);
    let (plain, adapted) = lora_model(&device);
    let ids = ids(12);
    close(whole(&adapted, &ids), whole(&plain, &ids), 1e-7);

    let trained = train_b(adapted, &device);
    let hidden = whole(&trained, &ids);
    let moved = (hidden.clone() - whole(&plain, &ids)).abs().sum();
    assert!(moved.into_scalar::<f32>() > 1.0);
    let merged = trained.merge_lora();
    assert_eq!(merged.num_params(), plain.num_params());
    close(whole(&merged, &ids), hidden, 1e-5);
}

#[test]
fn lora_is_where_it_is_wanted() {
    let plain = decoder().init(&device(7));
    let config = LoraConfig::new()
        .with_rank(3)
        .with_targets(vec![LoraTarget::QProj, LoraTarget::UpProj]);
    let adapted = plain.clone().with_lora(&config);
    // Rank 3 between 32 and 32, and between 32 and 48, in two layers.
    let more = 2 * 3 * ((32 + 32) + (32 + 48));
    assert_eq!(adapted.num_params(), plain.num_params() + more);
}

/// Counts the parameters with a gradient, and all parameters.
fn with_gradients<M: Module>(module: &M, gradients: &Gradients) -> (usize, usize) {
    struct Count<'a>(&'a Gradients, usize, usize);
    impl ModuleVisitor for Count<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let count = param.lazy_shape().num_elements();
            self.1 += usize::from(param.val().grad(self.0).is_some()) * count;
            self.2 += count;
        }
    }
    let mut count = Count(gradients, 0, 0);
    module.visit(&mut count);
    (count.1, count.2)
}

#[test]
fn lora_freezes_the_rest() {
    let device = device(8).autodiff();
    let (_, adapted) = lora_model(&device);
    let hidden = whole(&adapted, &ids(8));
    let gradients = adapted.logits(hidden).sum().backward();
    let (_, frozen) = with_gradients(&adapted, &gradients);
    for layer in &adapted.layers {
        let Projection::Lora(lora) = &layer.self_attn.q_proj else {
            panic!("no LoRA")
        };
        assert_eq!(with_gradients(&lora.base, &gradients).0, 0);
        assert_ne!(with_gradients(&lora.lora_b, &gradients).0, 0);
        assert_ne!(with_gradients(&layer.input_layernorm, &gradients).0, 0);
    }
    assert_ne!(with_gradients(&adapted.embed_tokens, &gradients).0, 0);
    assert_ne!(with_gradients(&adapted.lm_head, &gradients).0, 0);
    assert!(frozen > 0);

    let config = LoraConfig::new()
        .with_train_norms(false)
        .with_train_embeddings(false);
    let adapted = decoder().init(&device).with_lora(&config);
    let hidden = whole(&adapted, &ids(8));
    let gradients = adapted.logits(hidden).sum().backward();
    assert_eq!(with_gradients(&adapted.embed_tokens, &gradients).0, 0);
    assert_eq!(with_gradients(&adapted.norm, &gradients).0, 0);
}

// ---- 8 and 4 bits

#[test]
fn packed_layers_multiply_with_their_weights() {
    let device = device(9);
    let config = MistralConfig::new(40, 64, 96, 1, 4, 2);
    for (quantization, limit) in [(Quantization::Q8, 6e-3), (Quantization::Q4, 0.12)] {
        let layer = config.init(&device).layers.remove(0);
        let Projection::Dense(linear) = &layer.mlp.down_proj else {
            panic!("not dense")
        };
        let exact = linear.weight.val();
        let projection = layer.mlp.down_proj.clone().quantize(quantization, true);
        let Projection::Packed(packed) = &projection else {
            panic!("not packed")
        };
        let weight = Tensor::<1>::from_floats(packed.weights().as_slice(), &device);
        let weight = weight.reshape([96, 64]);
        close(weight.clone().unsqueeze(), exact.unsqueeze(), limit);
        for rows in [1, 3, 20] {
            let x = Tensor::<3>::random([1, rows, 96], Distribution::Normal(0.0, 1.0), &device);
            let expected = x.clone().matmul(weight.clone().unsqueeze());
            // Inputs are rounded to 8 bits.
            close(projection.forward(x), expected, 8e-3);
        }
    }
}

#[test]
fn quantised_decoders_stay_near() {
    let device = device(10);
    let config = MistralConfig::new(40, 64, 96, 2, 4, 2);
    let mut model = config.init(&device);
    let ids = ids(12);
    let exact = whole(&model, &ids);
    let before = model.clone();
    for (quantization, limit) in [(Quantization::Q8, 2e-2), (Quantization::Q4, 0.3)] {
        model = before.clone();
        for (_, slot) in model.layers.iter_mut().flat_map(|l| l.projections_mut()) {
            *slot = slot.clone().quantize(quantization, true);
        }
        let hidden = whole(&model, &ids);
        close(hidden.clone(), exact.clone(), limit);
        assert!((hidden - exact.clone()).abs().sum().into_scalar::<f32>() > 0.0);
    }
}

#[test]
fn rows_without_whole_blocks_stay_dense() {
    let layer = MistralConfig::new(40, 48, 64, 1, 4, 2)
        .init(&device(11))
        .layers
        .remove(0);
    let quantize = |projection: Projection| projection.quantize(Quantization::Q8, true);
    assert!(matches!(
        quantize(layer.self_attn.q_proj),
        Projection::Dense(_)
    ));
    assert!(matches!(
        quantize(layer.mlp.down_proj),
        Projection::Packed(_)
    ));
}

// ---- Text

fn read(model: &Mistral, ids: &[u32]) -> Context {
    let mut context = empty(model);
    context.read(model, embed(model, ids), *ids.last().unwrap());
    context
}

fn rules<'a>(sampling: &'a TextSampling, stop: &'a [u32]) -> Rules<'a> {
    Rules {
        sampling,
        stop,
        order: None,
        window: 1000,
    }
}

fn go_on(_: u32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn greedy_text_is_what_whole_passes_say() {
    let model = decoder().init(&device(12));
    let prompt = ids(7);
    let sampling = TextSampling::greedy().with_max_new_tokens(12);
    let mut context = read(&model, &prompt);
    let text = model
        .generate(
            &mut context,
            rules(&sampling, &[]),
            &mut Noise::new(0),
            go_on,
        )
        .unwrap();
    assert_eq!(text.end, FinishReason::Length);
    let mut all = prompt;
    for &id in &text.ids {
        let hidden = whole(&model, &all);
        let last = hidden.narrow(1, all.len() - 1, 1);
        let best = model.logits(last).argmax(2).into_scalar::<i64>();
        assert_eq!(best, i64::from(id));
        all.push(id);
    }
}

#[test]
fn a_seed_decides_the_text() {
    let model = decoder().init(&device(13));
    let sampling = TextSampling::new()
        .with_temperature(1.0)
        .with_top_p(1.0)
        .with_max_new_tokens(16);
    let text = |seed| {
        let mut context = read(&model, &ids(5));
        model
            .generate(
                &mut context,
                rules(&sampling, &[]),
                &mut Noise::new(seed),
                go_on,
            )
            .unwrap()
            .ids
    };
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

#[test]
fn text_ends_where_it_should() {
    let model = decoder().init(&device(14));
    let prompt = ids(5);
    let sampling = TextSampling::greedy().with_max_new_tokens(8);
    let noise = &mut Noise::new(0);
    let mut context = read(&model, &prompt);
    let all = model
        .generate(&mut context, rules(&sampling, &[]), noise, go_on)
        .unwrap()
        .ids;

    let first = all.iter().position(|&id| id == all[3]).unwrap();
    let mut context = read(&model, &prompt);
    let stopped = model
        .generate(&mut context, rules(&sampling, &[all[3]]), noise, go_on)
        .unwrap();
    assert_eq!(stopped.end, FinishReason::Token(all[3]));
    assert_eq!(stopped.ids, all[..=first]);

    let mut left = 2;
    let mut context = read(&model, &prompt);
    let mut seen = Vec::new();
    let cut = model
        .generate(&mut context, rules(&sampling, &[]), noise, |id| {
            seen.push(id);
            left -= 1;
            if left == 0 {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert!(matches!(cut, LlmError::Stopped(_)));
    assert_eq!(seen, all[..2]);

    let narrow = Rules {
        window: 7,
        ..rules(&sampling, &[])
    };
    let mut context = read(&model, &prompt);
    let full = model.generate(&mut context, narrow, noise, go_on).unwrap();
    assert_eq!((full.end, full.ids.len()), (FinishReason::Length, 2));
    let mut context = read(&model, &ids(7));
    let error = model
        .generate(&mut context, narrow, noise, go_on)
        .unwrap_err();
    assert!(matches!(
        error,
        LlmError::TooLong {
            tokens: 7,
            window: 7
        }
    ));
}

/// Returns the log-probability of a continuation.
fn log_probability(model: &Mistral, prompt: &[u32], text: &[u32]) -> f64 {
    let mut all = prompt.to_vec();
    all.extend(text);
    let hidden = whole(model, &all);
    let scores = burn::tensor::activation::log_softmax(model.logits(hidden), 2);
    let scores: Vec<f32> = scores.into_data().iter().collect();
    let vocabulary = scores.len() / all.len();
    text.iter()
        .enumerate()
        .map(|(i, &id)| f64::from(scores[(prompt.len() + i - 1) * vocabulary + id as usize]))
        .sum()
}

#[test]
fn beams_find_what_trying_everything_finds() {
    // With so few tokens, the beams hold every text of three tokens.
    let vocabulary = 6;
    let config = MistralConfig::new(vocabulary, 32, 48, 2, 4, 2);
    for seed in 0..4 {
        let model = config.init(&device(20 + seed));
        let prompt = [1, 2, 3];
        let end = 5;
        let mut texts = vec![vec![]];
        let mut best = (f64::NEG_INFINITY, vec![]);
        for length in 1..=3 {
            texts = texts
                .into_iter()
                .flat_map(|text: Vec<u32>| {
                    (0..vocabulary as u32).map(move |id| [&text[..], &[id]].concat())
                })
                .collect();
            for text in &texts {
                if text.last() == Some(&end) || length == 3 {
                    let mean = log_probability(&model, &prompt, text) / length as f64;
                    if mean > best.0 {
                        best = (mean, text.clone());
                    }
                }
            }
            texts.retain(|text| text.last() != Some(&end));
        }
        let sampling = TextSampling::new().with_beams(64).with_max_new_tokens(3);
        let mut context = read(&model, &prompt);
        let found = model
            .generate(
                &mut context,
                rules(&sampling, &[end]),
                &mut Noise::new(0),
                go_on,
            )
            .unwrap();
        assert_eq!(found.ids, best.1, "seed {seed}");
        // Everything except the last token is part of the context then.
        assert_eq!(context.len(), prompt.len() + found.ids.len() - 1);
    }
}

// ---- Clips

fn model(mechanism: QueryMechanism, head: HeadConfig, device: &Device) -> DivotLlm {
    DivotLlmConfig::new(decoder(), head)
        .with_num_queries(QUERIES)
        .with_query_mechanism(mechanism)
        .init(device)
}

fn regression() -> HeadConfig {
    HeadConfig::Regression(RegressionConfig::new().with_dim(DIM))
}

/// Returns a prompt of seven tokens, a clip to predict, and one token after it.
fn sequence() -> Sequence {
    let ids: Vec<u32> = ids(8 + QUERIES);
    let labels = ids.iter().map(|&id| Some(id)).collect();
    let mut roles = vec![Role::Causal; ids.len()];
    roles[7..7 + QUERIES].fill(Role::Query { block: 0 });
    Sequence {
        ids,
        labels,
        roles,
        positions: (0..8 + QUERIES).collect(),
        inputs: Vec::new(),
        outputs: (7..7 + QUERIES).collect(),
    }
}

#[test]
fn clips_are_predicted_as_they_are_trained() {
    for mechanism in [
        QueryMechanism::Autoregressive,
        QueryMechanism::Causal,
        QueryMechanism::Bidirectional,
    ] {
        let device = device(30);
        let model = model(mechanism, regression(), &device);
        let sequence = sequence();
        let prompt = Prompt {
            ids: sequence.ids[..7].to_vec(),
            clips: Vec::new(),
        };
        let mut context = empty(&model.llm);
        model.read(&mut context, &prompt, None).unwrap();
        let frames = &sequence.ids[7..7 + QUERIES];
        let noise = &mut Noise::new(0);
        let clip = model
            .predict_clip(&mut context, frames, &SampleOptions::new(), noise)
            .unwrap();
        assert_eq!(clip.dims(), [1, QUERIES, DIM]);
        assert_eq!(
            context.len(),
            7,
            "{mechanism:?} leaves the context as it was"
        );

        // In training, the clip that regression predicts has a loss of zero.
        let batch = |targets: Tensor<3>| Batch {
            sequences: vec![sequence.clone()],
            inputs: None,
            targets: Some(targets),
        };
        let loss = model.forward(&batch(clip.clone()), DType::F32, noise).head;
        assert_eq!(loss.count, QUERIES);
        let loss = loss.mean().into_scalar::<f64>();
        assert!(loss < 1e-9, "{mechanism:?}: {loss}");
        let loss = model.forward(&batch(clip + 0.1), DType::F32, noise).head;
        assert!(loss.mean().into_scalar::<f64>() > 1e-4, "{mechanism:?}");
    }
}

#[test]
fn queries_see_each_other_as_the_mechanism_says() {
    let device = device(31);
    for (mechanism, sees) in [
        (QueryMechanism::Causal, false),
        (QueryMechanism::Bidirectional, true),
    ] {
        let model = model(mechanism, regression(), &device);
        let clip = |last: u32| {
            let prompt = Prompt {
                ids: ids(5),
                clips: Vec::new(),
            };
            let mut context = empty(&model.llm);
            model.read(&mut context, &prompt, None).unwrap();
            let frames = [10, 11, 12, last];
            let options = SampleOptions::new();
            model
                .predict_clip(&mut context, &frames, &options, &mut Noise::new(0))
                .unwrap()
                .narrow(1, 0, 1)
        };
        let difference = (clip(13) - clip(14)).abs().sum().into_scalar::<f32>();
        assert_eq!(difference > 1e-6, sees, "{mechanism:?}");
    }
}

#[test]
fn features_take_the_place_of_tokens() {
    let device = device(32);
    let model = model(
        QueryMechanism::Bidirectional,
        HeadConfig::Gmm(GmmConfig::new().with_num_components(2).with_dim(DIM)),
        &device,
    );
    let features = Tensor::<3>::random([2, QUERIES, DIM], Distribution::Default, &device);
    let hidden = |ids: Vec<u32>, features: Tensor<3>| {
        let prompt = Prompt {
            ids,
            clips: vec![2, 8],
        };
        let mut context = empty(&model.llm);
        model.read(&mut context, &prompt, Some(features)).unwrap();
        context.hidden().unwrap().clone()
    };
    let expected = hidden(ids(14), features.clone());
    // The ids below features do not matter. The features and their order do.
    let mut other = ids(14);
    other[2..2 + QUERIES].fill(0);
    other[8..8 + QUERIES].fill(1);
    close(
        hidden(other.clone(), features.clone()),
        expected.clone(),
        1e-7,
    );
    let swapped = features.clone().flip([0]);
    let difference = (hidden(other, swapped) - expected).abs().sum();
    assert!(difference.into_scalar::<f32>() > 1e-3);

    let mut context = empty(&model.llm);
    let prompt = Prompt {
        ids: ids(14),
        clips: vec![2],
    };
    let error = model
        .read(&mut context, &prompt, Some(features))
        .unwrap_err();
    assert!(matches!(error, LlmError::Features { .. }), "{error}");
    assert!(context.is_empty());
}

#[test]
fn long_prompts_are_read_in_pieces() {
    let model = model(QueryMechanism::Bidirectional, regression(), &device(33));
    let prompt = Prompt {
        ids: ids(1100),
        clips: Vec::new(),
    };
    let mut context = empty(&model.llm);
    model.read(&mut context, &prompt, None).unwrap();
    let expected = whole(&model.llm, &prompt.ids).narrow(1, 1099, 1);
    close(context.hidden().unwrap().clone(), expected, 1e-4);
}

#[test]
fn prompts_beyond_the_window_are_refused() {
    let config = decoder().with_max_position_embeddings(20);
    let model = DivotLlmConfig::new(config, regression()).init(&device(34));
    let mut context = empty(&model.llm);
    let prompt = |count| Prompt {
        ids: ids(count),
        clips: Vec::new(),
    };
    let error = model.read(&mut context, &prompt(20), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the prompt takes 20 tokens and the model's window is 20; shorten the text or use fewer clips"
    );
    model.read(&mut context, &prompt(19), None).unwrap();
    let error = model.read(&mut context, &prompt(1), None).unwrap_err();
    assert!(matches!(error, LlmError::TooLong { .. }));
    let error = model.read(&mut context, &prompt(0), None).unwrap_err();
    assert!(matches!(error, LlmError::Empty("prompt")));
}

#[test]
fn a_batch_learns_the_mean_of_its_tokens() {
    let device = device(35);
    let model = model(QueryMechanism::Bidirectional, regression(), &device);
    let text = |count: usize, learned: usize| {
        let ids = ids(count);
        let mut labels: Vec<Option<u32>> = ids.iter().map(|&id| Some(id)).collect();
        labels[..count - learned].fill(None);
        Sequence {
            roles: vec![Role::Causal; count],
            positions: (0..count).collect(),
            ids,
            labels,
            ..Sequence::default()
        }
    };
    let loss = |sequences: Vec<Sequence>| {
        let batch = Batch {
            sequences,
            inputs: None,
            targets: None,
        };
        let losses = model.forward(&batch, DType::F32, &mut Noise::new(0));
        assert_eq!(losses.head.count, 0);
        assert_eq!(losses.head.mean().into_scalar::<f32>(), 0.0);
        (losses.lm.count, losses.lm.mean().into_scalar::<f64>())
    };
    let expected = |count: usize, learned: usize| {
        let all = ids(count);
        let (prompt, rest) = all.split_at(count - learned);
        -log_probability(&model.llm, prompt, rest)
    };
    // Sequences of different lengths. One of them is padded.
    let (count, found) = loss(vec![text(9, 4), text(5, 2)]);
    assert_eq!(count, 6);
    let mean = (expected(9, 4) + expected(5, 2)) / 6.0;
    assert!((found - mean).abs() < 1e-5, "{found} {mean}");
    assert_eq!(loss(vec![text(5, 0)]), (0, 0.0));
}
