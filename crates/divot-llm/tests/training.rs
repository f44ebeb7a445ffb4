//! Training rows and the losses of batches.

use std::path::Path;

use burn::config::Config;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Distribution, Gradients, Tensor};
use divot_gmm::{GmmConfig, HeadConfig, Noise, RegressionConfig, SampleOptions};
use divot_llm::tokenizer::Segment;
use divot_llm::{
    Batch, Context, DivotLlm, DivotLlmConfig, LlmError, LoraConfig, Medium, MistralConfig, Prompt,
    QueryMechanism, Role, Sequence, SequenceBuilder, Shown, SpecialTokens, TextTokenizer, Turn,
};

const DIM: usize = 6;
const QUERIES: usize = 4;

fn tokenizer() -> (TextTokenizer, SpecialTokens) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer");
    let mut text = TextTokenizer::open(&folder).unwrap();
    text.add_divot_tokens().unwrap();
    let tokens = SpecialTokens::of(&text, QUERIES).unwrap();
    (text, tokens)
}

/// Writes a row as text without spaces. Learned tokens are in brackets. Queries are `?`, hidden queries `!`,
/// and features that are read `=`.
fn written(text: &TextTokenizer, row: &Sequence) -> String {
    let mut written = String::new();
    let mut last = false;
    for i in 0..row.len() {
        let learned = row.labels[i].is_some();
        if learned {
            assert_eq!(row.labels[i], Some(row.ids[i]));
        }
        if learned != last {
            written.push(if learned { '[' } else { ']' });
            last = learned;
        }
        if row.outputs.contains(&i) {
            let hidden = matches!(row.roles[i], Role::HiddenQuery { .. });
            assert!(hidden || matches!(row.roles[i], Role::Query { .. }));
            written.push(if hidden { '!' } else { '?' });
        } else {
            assert_eq!(row.roles[i], Role::Causal);
            if row.inputs.contains(&i) {
                written.push('=');
            } else {
                written += &text.decode(&[row.ids[i]], false).unwrap();
            }
        }
    }
    if last {
        written.push(']');
    }
    written.retain(|c| c != ' ');
    written
}

/// Returns the ids of texts that are encoded separately, with special tokens by name.
fn encoded(text: &TextTokenizer, parts: &[&str]) -> Vec<u32> {
    let special = |name: &str| text.id(name).filter(|&id| text.is_special(id));
    parts
        .iter()
        .flat_map(|part| match special(part) {
            Some(id) => vec![id],
            None => text.encode(&[Segment::Text(part)]).unwrap(),
        })
        .collect()
}

fn clip(queries: usize) -> String {
    let inner: String = (0..queries).map(|i| format!("<frame_{i:05}>")).collect();
    format!("<frame>{inner}</frame>")
}

fn builder<'a>(text: &'a TextTokenizer, tokens: &'a SpecialTokens) -> SequenceBuilder<'a> {
    SequenceBuilder {
        text,
        tokens,
        max_length: 500,
    }
}

#[test]
fn plain_texts() {
    let (text, tokens) = tokenizer();
    let builder = SequenceBuilder {
        text: &text,
        tokens: &tokens,
        max_length: 100,
    };
    let row = builder.plain("a dog").unwrap();
    assert_eq!(written(&text, &row), "<s>[adog</s>]");
    let short = SequenceBuilder {
        max_length: 2,
        ..builder
    };
    assert_eq!(short.plain("a dog").unwrap().len(), 2);
    assert!(matches!(builder.plain(" "), Err(LlmError::Empty("text"))));
}

#[test]
fn captions() {
    let (text, tokens) = tokenizer();
    let rows = builder(&text, &tokens);
    let plain = rows.caption(Shown::Video(2), None, "A dog.").unwrap();
    assert_eq!(
        written(&text, &plain),
        "<s><vid><frame>====</frame><frame>====</frame></vid>[Adog.</s>]"
    );
    assert_eq!(plain.positions, (0..plain.len()).collect::<Vec<_>>());
    let clip = clip(QUERIES);
    let video = format!("<s><vid>{clip}{clip}</vid>");
    let mut expected = text.encode_with_special(&video).unwrap();
    expected.extend(encoded(&text, &["A dog.", "</s>"]));
    assert_eq!(plain.ids, expected);

    let asked = rows.caption(Shown::Image, Some("What is it?"), "A dog.");
    assert_eq!(
        written(&text, &asked.unwrap()),
        "<s>[INST]<img><frame>====</frame></img>Whatisit?[/INST]\n[Adog.</s>]"
    );
}

#[test]
fn answers_of_several_turns() {
    let (text, tokens) = tokenizer();
    let rows = builder(&text, &tokens);
    let turns = [
        Turn {
            question: "<video>\nWho is it?",
            answer: "A dog.",
        },
        Turn {
            question: "Where?",
            answer: "At home.",
        },
        Turn {
            question: "When?",
            answer: "Now.",
        },
    ];
    let row = rows.answers(Shown::Video(1), &turns).unwrap();
    assert_eq!(
        written(&text, &row),
        "<s>[INST]<vid><frame>====</frame></vid>Whoisit?[/INST]\n[Adog.]\
         \n[INST]Where?[/INST]\n[Athome.]\n[INST]When?[/INST]\n[Now.</s>]"
    );
    let question = Prompt::question(&text, &tokens, Shown::Video(1), "Who is it?").unwrap();
    let mut expected = question.ids.clone();
    expected.extend(encoded(
        &text,
        &[
            "A dog.",
            "\n[INST] Where? [/INST]\n",
            "At home.",
            "\n[INST] When? [/INST]\n",
            "Now.",
            "</s>",
        ],
    ));
    assert_eq!(row.ids, expected);
    let start = question.clips[0];
    assert_eq!(row.inputs, (start..start + QUERIES).collect::<Vec<_>>());
    assert!(row.outputs.is_empty());

    let none = rows.answers(Shown::Video(1), &[]).unwrap_err();
    assert!(matches!(none, LlmError::Empty("conversation")));
    for (question, answer) in [("<video>\n", "A dog."), ("Who?", " ")] {
        let error = rows.answers(Shown::Nothing, &[turns[0], Turn { question, answer }]);
        assert!(matches!(error.unwrap_err(), LlmError::Empty(_)));
    }
}

#[test]
fn generation() {
    let (text, tokens) = tokenizer();
    let rows = builder(&text, &tokens);
    let row = rows.generation(Medium::Video, Some("Generate a video of"), "a dog");
    let row = row.unwrap();
    assert_eq!(
        written(&text, &row),
        "<s>[INST]Generateavideoofadog[/INST]\n[<vid>]<frame>????</frame>[</vid></s>]"
    );
    let prompt = Prompt::generation(&text, "a dog").unwrap();
    assert_eq!(row.ids[..prompt.ids.len()], prompt.ids);
    let row = rows.generation(Medium::Image, Some("Show me"), "a dog");
    assert_eq!(
        written(&text, &row.unwrap()),
        "<s>[INST]Showmeadog[/INST]\n[<img>]<frame>????</frame>[</img></s>]"
    );
    let row = rows.generation(Medium::Video, None, "A dog.").unwrap();
    assert_eq!(
        written(&text, &row),
        "<s>Adog.<vid><frame>????</frame></vid>[</s>]"
    );
    assert_eq!(row.positions, (0..row.len()).collect::<Vec<_>>());
    assert_eq!(row.outputs.len(), QUERIES);
    assert!(row.inputs.is_empty());
}

#[test]
fn stories() {
    let (text, tokens) = tokenizer();
    let rows = builder(&text, &tokens);
    let scenes = ["A dog runs.", "It sleeps."];
    let row = rows.story(Some("Tell of a dog."), &scenes, "The end.");
    let row = row.unwrap();
    assert_eq!(
        written(&text, &row),
        "<s>[INST]Tellofadog.[/INST]\n[Adogruns.<vid>]<frame>!!!!====</frame>[</vid>\
         Itsleeps.<vid>]<frame>!!!!====</frame>[</vid>Theend.</s>]"
    );
    // Features follow in place of the queries, and the other tokens come after them.
    for scene in 0..2 {
        for i in 0..QUERIES {
            let place = |of: &[usize]| row.positions[of[scene * QUERIES + i]];
            assert_eq!(place(&row.outputs), place(&row.inputs));
        }
    }
    let mut positions: Vec<usize> = (0..row.len())
        .filter(|i| !row.outputs.contains(i))
        .map(|i| row.positions[i])
        .collect();
    positions.dedup();
    assert_eq!(positions, (0..row.len() - 2 * QUERIES).collect::<Vec<_>>());

    let row = rows.story(None, &scenes, "").unwrap();
    let start = "<s>[Adogruns.<vid>]<frame>!!!!====</frame>";
    assert!(written(&text, &row).starts_with(start));
    let error = rows.story(None, &[], "").unwrap_err();
    assert!(matches!(error, LlmError::Empty("story")));
}

#[test]
fn rows_are_cut_and_dropped() {
    let (text, tokens) = tokenizer();
    let all = builder(&text, &tokens);
    let long = "A dog runs over the hill and down to the river.";
    let whole = all.caption(Shown::Video(1), None, long).unwrap();
    for max_length in 0..whole.len() + 2 {
        let rows = SequenceBuilder { max_length, ..all };
        // Two tokens before the features, two after them, and one learned token.
        let row = rows.caption(Shown::Video(1), None, long);
        if max_length < QUERIES + 6 {
            let error = row.unwrap_err();
            assert!(matches!(error, LlmError::RowTooLong { .. }), "{error}");
            continue;
        }
        let row = row.unwrap();
        let length = max_length.min(whole.len());
        assert_eq!(row.ids, whole.ids[..length]);
        assert_eq!(row.labels, whole.labels[..length]);
        assert_eq!(row.positions.len(), length);
        assert_eq!(row.roles.len(), length);
    }

    for instruction in [None, Some("Generate a video of")] {
        let whole = all.generation(Medium::Video, instruction, long).unwrap();
        let mut shortest = None;
        for max_length in (0..whole.len() + 2).rev() {
            let rows = SequenceBuilder { max_length, ..all };
            let Ok(row) = rows.generation(Medium::Video, instruction, long) else {
                shortest = shortest.or(Some(max_length + 1));
                continue;
            };
            assert_eq!(
                shortest, None,
                "{max_length} fits, and a longer row does not"
            );
            assert!(row.len() <= max_length);
            // The rest of the row is complete. The caption is cut at its end.
            let rest = QUERIES + 5;
            assert_eq!(row.ids[row.len() - rest..], whole.ids[whole.len() - rest..]);
            assert_eq!(row.outputs.len(), QUERIES);
            let prompt = text.decode(&row.ids[1..row.len() - rest], false).unwrap();
            let caption = match instruction {
                None => prompt.as_str(),
                Some(phrase) => prompt
                    .strip_prefix(&format!("[INST] {phrase} "))
                    .and_then(|rest| rest.strip_suffix(" [/INST]\n"))
                    .unwrap(),
            };
            assert!(
                long.starts_with(caption) && !caption.is_empty(),
                "{caption}"
            );
        }
        let shortest = shortest.unwrap();
        assert!(shortest > QUERIES + 5 && shortest < whole.len());
        let error = SequenceBuilder {
            max_length: QUERIES,
            ..all
        }
        .generation(Medium::Video, instruction, long)
        .unwrap_err();
        assert!(error.to_string().contains("leave this sample out"));
    }
    let story = all.story(None, &[long], "").unwrap();
    let rows = SequenceBuilder {
        max_length: story.len() - 1,
        ..all
    };
    let error = rows.story(None, &[long], "").unwrap_err();
    assert!(matches!(error, LlmError::RowTooLong { .. }));
}

#[test]
fn special_tokens_in_texts_stay_text() {
    let (text, tokens) = tokenizer();
    let rows = builder(&text, &tokens);
    let row = rows.caption(Shown::Nothing, None, "a</s><vid>").unwrap();
    assert_eq!(row.ids.iter().filter(|&&id| text.is_special(id)).count(), 2);
}

#[test]
fn padding_counts_on() {
    let (text, tokens) = tokenizer();
    let row = builder(&text, &tokens).caption(Shown::Nothing, None, "A dog.");
    let row = row.unwrap();
    let padded = row.padded(row.len() + 3);
    assert_eq!(padded.ids[row.len()..], [0; 3]);
    assert_eq!(padded.labels[row.len()..], [None; 3]);
    assert_eq!(padded.roles[row.len()..], [Role::Padding; 3]);
    assert_eq!(padded.positions, (0..padded.len()).collect::<Vec<_>>());
}

// ---- Batches

fn device(seed: u64) -> Device {
    let device = Device::flex();
    device.seed(seed);
    device
}

fn config(text: &TextTokenizer) -> DivotLlmConfig {
    let decoder = MistralConfig::new(text.vocab_size(), 32, 48, 2, 4, 2);
    let head = HeadConfig::Regression(RegressionConfig::new().with_dim(DIM));
    DivotLlmConfig::new(decoder, head).with_num_queries(QUERIES)
}

fn off(a: Tensor<3>, b: Tensor<3>) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b.clone()).square().sum().into_scalar::<f64>();
    (difference / b.square().sum().into_scalar::<f64>()).sqrt()
}

/// Generates a story. Returns the clip of each scene, and the hidden states after each piece that is read
/// with the index of the piece's last token in the training row.
fn told(
    model: &DivotLlm,
    tokens: &SpecialTokens,
    row: &Sequence,
) -> (Vec<Tensor<3>>, Vec<(usize, Tensor<3>)>) {
    let mut context = Context::new(&model.llm, 1, DType::F32);
    let (mut clips, mut hidden) = (Vec::new(), Vec::new());
    let mut i = 0;
    while i < row.len() {
        if row.outputs.contains(&i) {
            let clip = model.predict_clip(
                &mut context,
                &tokens.features,
                &SampleOptions::new(),
                &mut Noise::new(0),
            );
            clips.push(clip.unwrap());
            i += QUERIES;
            continue;
        }
        let count = if row.inputs.contains(&i) { QUERIES } else { 1 };
        let features = (count > 1).then(|| clips.last().unwrap().clone());
        let prompt = Prompt {
            ids: row.ids[i..i + count].to_vec(),
            clips: features.iter().map(|_| 0).collect(),
        };
        model.read(&mut context, &prompt, features).unwrap();
        i += count;
        hidden.push((i - 1, context.hidden().unwrap().clone()));
    }
    (clips, hidden)
}

#[test]
fn a_story_is_trained_as_it_is_told() {
    let (text, tokens) = tokenizer();
    let scenes = ["A dog runs.", "It sleeps.", "It wakes."];
    let row = builder(&text, &tokens).story(Some("Tell of a dog."), &scenes, "The end.");
    let row = row.unwrap();
    for mechanism in [
        QueryMechanism::Autoregressive,
        QueryMechanism::Causal,
        QueryMechanism::Bidirectional,
    ] {
        for window in [None, Some(20)] {
            let mut config = config(&text).with_query_mechanism(mechanism);
            config.llm.sliding_window = window;
            let model = config.init(&device(1));
            let (clips, pieces) = told(&model, &tokens, &row);
            assert_eq!(clips.len(), 3);

            // In a batch with a shorter row, which has another layout and is padded.
            let features = Tensor::cat(clips, 0);
            let short = builder(&text, &tokens).story(None, &scenes[..1], "");
            let first = features.clone().narrow(0, 0, 1);
            let all = Some(Tensor::cat(vec![first, features.clone()], 0));
            let batch = Batch {
                sequences: vec![short.unwrap(), row.clone()],
                inputs: all.clone(),
                targets: all,
            };
            let hidden = model.hidden(&batch, DType::F32);
            for (index, told) in pieces {
                let trained = hidden.clone().narrow(0, 1, 1).narrow(1, index, 1);
                let off = off(trained, told);
                assert!(off < 1e-5, "{mechanism:?}, token {index}: {off}");
            }
            // The parameters of regression are the features.
            let params = model.head_params(hidden.clone(), &batch).unwrap();
            let error = off(params.narrow(0, 1, 3), features);
            assert!(error < 1e-5, "{mechanism:?}: {error}");
            // The first clip of the shorter row was not generated from it, so only the count is checked.
            let losses = model.forward(&batch, DType::F32, &mut Noise::new(0));
            assert_eq!(losses.head.count, 4 * QUERIES);
        }
    }
}

#[test]
fn visible_queries_would_be_another_story() {
    let (text, tokens) = tokenizer();
    let row = builder(&text, &tokens).story(None, &["A dog runs."], "The end.");
    let row = row.unwrap();
    let model = config(&text).init(&device(2));
    let features = Tensor::<3>::random([1, QUERIES, DIM], Distribution::Default, &device(3));
    let last = |row: Sequence| {
        let end = row.len() - 1;
        let batch = Batch {
            sequences: vec![row],
            inputs: Some(features.clone()),
            targets: Some(features.clone()),
        };
        model.hidden(&batch, DType::F32).narrow(1, end, 1)
    };
    let expected = last(row.clone());
    let mut visible = row.clone();
    for role in &mut visible.roles {
        if matches!(role, Role::HiddenQuery { .. }) {
            *role = Role::Query { block: 0 };
        }
    }
    assert!(off(last(visible), expected.clone()) > 1e-3);
    let mut elsewhere = row;
    elsewhere.positions = (0..elsewhere.len()).collect();
    assert!(off(last(elsewhere), expected) > 1e-3);
}

/// Makes a batch of a caption row and a generation row, with features.
fn batch(text: &TextTokenizer, tokens: &SpecialTokens, device: &Device) -> Batch {
    let rows = builder(text, tokens);
    let features = || Tensor::<3>::random([1, QUERIES, DIM], Distribution::Default, device);
    Batch {
        sequences: vec![
            rows.caption(Shown::Video(1), None, "A dog.").unwrap(),
            rows.generation(Medium::Video, Some("Show me"), "a dog that runs")
                .unwrap(),
        ],
        inputs: Some(features()),
        targets: Some(features()),
    }
}

#[test]
fn losses_of_parts_add_up() {
    let (text, tokens) = tokenizer();
    let device = device(4);
    let gmm = HeadConfig::Gmm(GmmConfig::new().with_num_components(2).with_dim(DIM));
    let mut config = config(&text);
    config.head = gmm;
    let model = config.init(&device);
    let both = batch(&text, &tokens, &device);
    let losses = |batch: &Batch| {
        let losses = model.forward(batch, DType::F32, &mut Noise::new(0));
        let number = |x: Tensor<1>| x.into_scalar::<f64>();
        [
            (number(losses.lm.sum), losses.lm.count),
            (number(losses.head.sum), losses.head.count),
        ]
    };
    let part = |row: usize| Batch {
        sequences: vec![both.sequences[row].clone()],
        inputs: (row == 0).then(|| both.inputs.clone().unwrap()),
        targets: (row == 1).then(|| both.targets.clone().unwrap()),
    };
    let (whole, first, second) = (losses(&both), losses(&part(0)), losses(&part(1)));
    assert_eq!((first[1], second[1].1), ((0.0, 0), QUERIES));
    for i in 0..2 {
        assert_eq!(whole[i].1, first[i].1 + second[i].1);
        let sum = first[i].0 + second[i].0;
        assert!((whole[i].0 / sum - 1.0).abs() < 1e-5, "{whole:?} {sum}");
    }
}

/// Returns all gradients of a module in f32, concatenated.
fn gradients<M: Module>(module: &M, gradients: &Gradients) -> Vec<f32> {
    struct All<'a>(&'a Gradients, Vec<f32>);
    impl ModuleVisitor for All<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.0) {
                assert_eq!(gradient.dtype(), DType::F32, "of an f32 weight");
                self.1.extend(gradient.into_data().iter::<f32>());
            }
        }
    }
    let mut all = All(gradients, Vec::new());
    module.visit(&mut all);
    all.1
}

#[test]
fn bf16_activations_over_f32_weights() {
    let (text, tokens) = tokenizer();
    let device = device(5).autodiff();
    for lora in [None, Some(LoraConfig::new().with_rank(2).with_dropout(0.0))] {
        let gmm = HeadConfig::Gmm(GmmConfig::new().with_num_components(2).with_dim(DIM));
        let mut config = config(&text).with_lora(lora);
        config.head = gmm;
        let model = config.init(&device);
        let batch = batch(&text, &tokens, &device);
        let run = |dtype: DType| {
            let hidden = model.hidden(&batch, dtype);
            assert_eq!(hidden.dtype(), dtype, "computed as asked");
            let losses = model.forward(&batch, dtype, &mut Noise::new(0));
            assert_eq!(losses.lm.sum.dtype(), DType::F32);
            assert_eq!(losses.head.sum.dtype(), DType::F32);
            let total = losses.lm.mean() + losses.head.mean();
            let found = gradients(&model, &total.backward());
            (total.into_scalar::<f64>(), found)
        };
        let (exact, exact_gradients) = run(DType::F32);
        let (half, half_gradients) = run(DType::BF16);
        assert!((half / exact - 1.0).abs() < 0.02, "{half} {exact}");
        assert_ne!(half, exact);
        assert_eq!(half_gradients.len(), exact_gradients.len());
        let (mut difference, mut norm) = (0.0, 0.0);
        for (half, exact) in half_gradients.iter().zip(&exact_gradients) {
            assert!(half.is_finite());
            difference += f64::from(half - exact).powi(2);
            norm += f64::from(*exact).powi(2);
        }
        let off = (difference / norm).sqrt();
        assert!(off < 0.05, "gradients are {off} apart");
    }
}

#[test]
fn older_configs_still_load() {
    let (text, _) = tokenizer();
    let config = config(&text);
    let mut json: serde_json::Value = serde_json::to_value(&config).unwrap();
    assert!(json.get("lm_loss_scale").is_none());
    json["lm_loss_scale"] = 0.5.into();
    json["head_loss_scale"] = 2.0.into();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, json.to_string()).unwrap();
    let loaded = DivotLlmConfig::load(&path).unwrap();
    assert_eq!(
        serde_json::to_value(&loaded).unwrap(),
        serde_json::to_value(&config).unwrap()
    );
}
