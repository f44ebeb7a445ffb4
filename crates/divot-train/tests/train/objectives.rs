//! Every objective learns, and its loss does not depend on how a batch is divided.

use std::ops::ControlFlow;

use crate::common::{recipe, samples};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use divot::data::Clip;
use divot::data::dataset::{Sample, Text, Turn};
use divot_train::{Event, RunOptions, Trainer, plan, run};

const RATE: &str = "rate = { peak = 3e-3, warmup = 0, decay = \"constant\" }";

fn head(objective: &str, frozen: &str) -> String {
    format!(
        "steps = 1000\nbatch = 4\nfrozen = {frozen}\n{RATE}\n\
         objective = {objective}\n[[data]]\nsource = {{ format = \"captions\", path = \"clips\" }}\n"
    )
}

fn diffusion() -> String {
    head(
        "{ kind = \"diffusion\", dropped = 0.1 }",
        "[\"tokenizer.vision\", \"detokenizer.vae\"]",
    )
}

/// The first and the last loss of `steps` steps on one batch with the same noise.
fn learn(head: &str, steps: usize) -> [f64; 2] {
    learn_from(head, &[], &samples(4, 32), steps)
}

fn learn_from(head: &str, changes: &[&str], batch: &[Sample], steps: usize) -> [f64; 2] {
    let recipe = recipe(head, changes).expect("a valid recipe");
    let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
    let losses: Vec<f64> = (0..steps)
        .map(|_| {
            let report = trainer.step(0, 0, batch).expect("a step");
            assert!(report.learned);
            report.losses.loss()
        })
        .collect();
    [losses[0], losses[steps - 1]]
}

#[test]
fn diffusion_learns() {
    let [first, last] = learn(&diffusion(), 20);
    assert!(last < first / 2.0, "{first} → {last}");
}

fn stage0() -> String {
    head(
        "{ kind = \"stage0\", dropped = 0.2 }",
        "[\"vision\", \"text\", \"detokenizer.vae\", \"detokenizer.resampler\"]",
    )
}

/// Stage 0 from nothing, with as many states as the UNet takes for text.
const STAGE0: [&str; 2] = [
    "model.start={vision=\"random\", text=\"random\", detokenizer=\"random\"}",
    "model.text.context_length=8",
];

#[test]
fn stage_0_learns() {
    let [first, last] = learn_from(&stage0(), &STAGE0, &samples(4, 32), 20);
    assert!(last < first / 2.0, "{first} → {last}");
}

#[test]
fn ablations_of_the_tokenizer_learn() {
    for changes in [
        &[
            "model.tokenizer.resampler.variational=true",
            "objective.kl_weight=1e-4",
        ][..],
        &["model.tokenizer.resampler.perceiver=false"],
        &[
            "model.detokenizer.schedule.prediction=Epsilon",
            "model.detokenizer.schedule.zero_terminal_snr=false",
        ],
        &["objective.min_snr_gamma=5.0"],
        &["objective.frames=1"],
        &["objective.timesteps=[500, 1000]"],
    ] {
        let [first, last] = learn_from(&diffusion(), changes, &samples(2, 32), 20);
        assert!(last < first / 2.0, "{changes:?}: {first} → {last}");
    }
}

/// The loss of the first step on these samples.
fn first_loss(changes: &[&str], batch: &[Sample]) -> f64 {
    let recipe = recipe(&diffusion(), changes).expect("a valid recipe");
    let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
    trainer.step(0, 0, batch).expect("a step").losses.loss()
}

/// The tokenizer sees frames 0, 4, 8, 12 and 15, or the first alone.
#[test]
fn some_frames_are_denoised() {
    let batch = samples(2, 32);
    let without = |frame: usize| {
        let mut changed = batch.clone();
        for sample in &mut changed {
            let mut frames = sample.clips[0].frames().to_vec();
            frames[frame] = frames[14].clone();
            sample.clips[0] = Clip::new(frames).expect("a clip");
        }
        changed
    };
    for (frames, frame, same) in [
        (&[][..], 1, false),
        (&["objective.frames=2"], 1, true),
        (&["objective.frames=2"], 4, false),
        (&["objective.frames=1"], 4, true),
        (&["objective.frames=1"], 0, false),
    ] {
        let losses = [&batch, &without(frame)].map(|batch| first_loss(frames, batch));
        assert_eq!(losses[0] == losses[1], same, "{frames:?} without {frame}");
    }
}

/// A query that starts at a token scores by similarity: its weights are those of the keys, with another size.
#[test]
fn queries_of_a_new_detokenizer_start_at_tokens() {
    let recipe = recipe(&diffusion(), &[]).expect("a valid recipe");
    let trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
    let layer = &trainer.model().detokenizer().resampler.layers[0];
    let query = layer.to_q.weight.val();
    let keys = layer.to_kv.weight.val().narrow(1, 0, query.dims()[1]);
    let product = |a: &Tensor<2>, b: &Tensor<2>| (a.clone() * b.clone()).sum().into_scalar::<f32>();
    let cosine = product(&query, &keys) / (product(&query, &query) * product(&keys, &keys)).sqrt();
    assert!(cosine < -0.999, "{cosine}");
}

/// A UNet that was not trained predicts little. Nearly all of the loss is the mean square of the target then: of the
/// noise at the first timestep, and of the latents at the last one.
#[test]
fn some_timesteps_are_drawn() {
    let batch = samples(2, 32);
    let low = first_loss(&["objective.timesteps=[0, 1]"], &batch);
    let high = first_loss(&["objective.timesteps=[999, 1000]"], &batch);
    assert!((0.8..1.5).contains(&low), "{low}");
    assert!(high < low / 4.0, "{low}, then {high}");
}

#[test]
fn the_autoencoder_learns() {
    let [first, last] = learn(&head("{ kind = \"autoencoder\" }", "[]"), 30);
    assert!(last < first / 2.0, "{first} → {last}");
}

/// After the last step, latents have the scale that diffusion wants. What is frozen keeps its own.
#[test]
fn the_autoencoder_ends_with_scaled_latents() {
    let batch = samples(2, 32);
    let scale = |frozen: &str| {
        let head = head("{ kind = \"autoencoder\" }", frozen);
        let start = "model.start={vae=\"random\"}";
        let mut changes = vec!["steps=2", "rate.warmup=0", "average=0.5"];
        if frozen != "[]" {
            changes.push(start);
        }
        let recipe = recipe(&head, &changes).expect("a valid recipe");
        let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
        for step in 0..2 {
            trainer.step(step, 0, &batch).expect("a step");
        }
        let model = trainer.evaluated();
        let vae = model.vae();
        let squares = batch.iter().map(|sample| {
            let (values, shape) = sample.clips[0].dense();
            let frames = Tensor::<4>::from_data(TensorData::new(values, shape), &Device::default());
            let moments = vae.encode(frames);
            let square = moments.mean.square() + moments.logvar.exp();
            f64::from(square.mean().into_scalar::<f32>()) * vae.scale_factor.powi(2)
        });
        squares.sum::<f64>() / batch.len() as f64
    };
    let scaled = scale("[]");
    assert!((scaled - 1.0).abs() < 1e-3, "{scaled}");
    let held = scale("[\"vae.encoder\", \"vae.quant_conv\"]");
    assert!((held - 1.0).abs() > 0.1, "{held}");
}

#[test]
fn contrast_learns() {
    let [first, last] = learn(&head("{ kind = \"contrastive\" }", "[]"), 20);
    assert!(last < first / 2.0, "{first} → {last}");
}

/// A recipe of the language model, with keys of its source.
fn language(source: &str) -> (String, String) {
    let text = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixture/pretrained/cvlm_mistral_instruct_tokenizer"
    );
    let head = format!(
        "steps = 1000\nbatch = 4\nfrozen = [\"tokenizer\"]\n{RATE}\n\
         objective = {{ kind = \"language\" }}\n\
         [[data]]\nsource = {{ format = \"captions\", path = \"clips\" }}\n{source}\n"
    );
    (head, format!("model.text_tokenizer={text:?}"))
}

const LORA: &str = "model.llm.lora={rank=4, alpha=4.0, dropout=0.0, targets=[\"q_proj\"], \
                    train_norms=true, train_embeddings=true}";
const FROZEN: &str = "model.start={tokenizer=\"random\"}";

#[test]
fn captions_are_learned() {
    for instructions in [false, true] {
        let (head, text) = language(&format!(
            "task = \"comprehension\"\ninstructions = {instructions}"
        ));
        let [first, last] = learn_from(&head, &[FROZEN, &text], &samples(4, 32), 30);
        assert!(last < first / 2.0, "{first} → {last}");
    }
}

/// What is shown of a language model that learned a caption by heart is the caption.
#[test]
fn what_was_learned_is_said() {
    let (head, text) = language("task = \"comprehension\"\ninstructions = true");
    let recipe = recipe(&head, &[FROZEN, &text, "batch=1"]).expect("a valid recipe");
    let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
    let batch = samples(1, 32);
    for step in 0..60 {
        trainer.step(step, 0, &batch).expect("a step");
    }
    let shown = trainer.show(0, &batch).expect("a text");
    let [(_, text)] = &shown.texts[..] else {
        panic!("one text: {:?}", shown.texts);
    };
    let after = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
    };
    assert!(after("learned: ").len() > 10, "{text}");
    assert_eq!(after("made: "), after("learned: "), "{text}");
}

#[test]
fn clips_are_learned_from_captions() {
    let (head, text) = language("task = \"generation\"\ninstructions = true");
    let [first, last] = learn_from(&head, &[FROZEN, &text], &samples(4, 32), 30);
    // The likelihood is a density, so that its logarithm has no lower bound.
    assert!(last < first / 2.0, "{first} → {last}");
}

/// A caption is of one clip: of a video that was cut into several, the first is predicted.
#[test]
fn the_first_of_several_clips_is_learned_from_a_caption() {
    let (head, text) = language("task = \"generation\"");
    let [one, mut several] = [samples(4, 32), samples(4, 32)];
    for sample in &mut several[1..] {
        sample.clips.push(one[0].clips[0].clone());
    }
    let [[loss, _], [again, _]] =
        [one, several].map(|batch| learn_from(&head, &[FROZEN, &text], &batch, 1));
    assert!((loss - again).abs() < 1e-6, "{loss} {again}");
}

#[test]
fn ablations_of_the_language_model_learn() {
    let (head, text) = language("task = \"generation\"\ninstructions = true");
    for change in [
        "model.llm.head={Regression={dim=16}}",
        "model.llm.head={Denoising={dim=16,cond_dim=32,width=32,depth=1,timestep_width=16}}",
        "model.llm.query_mechanism=Causal",
        "model.llm.query_mechanism=Autoregressive",
    ] {
        let [first, last] = learn_from(&head, &[FROZEN, &text, change], &samples(4, 32), 30);
        assert!(last < first / 2.0, "{change}: {first} → {last}");
    }
}

#[test]
fn the_detokenizer_adapts_to_drawn_features() {
    let (head, text) = language("instructions = true");
    let changes = [
        "frozen=[\"tokenizer\", \"llm\", \"detokenizer.vae\"]",
        "model.start={tokenizer=\"random\", llm=\"random\", \"detokenizer.vae\"=\"random\"}",
        "objective={kind=\"adaptation\", dropped=0.3}",
        &text,
    ];
    let [first, last] = learn_from(&head, &changes, &samples(4, 32), 20);
    assert!(last < first / 2.0, "{first} → {last}");
}

#[test]
fn questions_and_stories_are_learned() {
    let turn = |question: &str, answer: &str| Turn {
        question: question.to_owned(),
        answer: answer.to_owned(),
    };
    let questions = Text::Turns(vec![
        turn("What is it?", "A square."),
        turn("Which way?", "To the right."),
    ]);
    let story = Text::Story {
        instruction: Some("Tell me a story.".to_owned()),
        scenes: vec!["A square wakes up.".to_owned(), "It leaves.".to_owned()],
        ending: "The end.".to_owned(),
    };
    for text in [questions, story] {
        let scenes = match text {
            Text::Story { .. } => 2,
            _ => 1,
        };
        let batch: Vec<Sample> = samples(4, 32)
            .into_iter()
            .map(|sample| Sample {
                clips: vec![sample.clips[0].clone(); scenes],
                text: text.clone(),
                ..sample
            })
            .collect();
        let (head, tokenizer) = language("");
        let [first, last] = learn_from(&head, &[FROZEN, &tokenizer], &batch, 30);
        assert!(last < first / 2.0, "{first} → {last}");
    }
}

#[test]
fn texts_are_learned_without_a_tokenizer() {
    let batch: Vec<Sample> = samples(4, 32)
        .into_iter()
        .map(|sample| Sample {
            clips: Vec::new(),
            text: Text::Plain("A square wakes up. It leaves.".to_owned()),
            ..sample
        })
        .collect();
    let (head, tokenizer) = language("");
    let changes = [
        "frozen=[]",
        "data.0.source={format=\"texts\",path=\"t.jsonl\"}",
        &tokenizer,
    ];
    let [first, last] = learn_from(&head, &changes, &batch, 30);
    assert!(last < first / 2.0, "{first} → {last}");
}

#[test]
fn a_tokenizer_learns_from_captions_through_a_frozen_language_model() {
    let (head, text) = language("task = \"comprehension\"");
    let changes = [
        "frozen=[\"tokenizer.vision\", \"llm\"]",
        "model.start={\"tokenizer.vision\"=\"random\", llm=\"random\"}",
        &text,
    ];
    let [first, last] = learn_from(&head, &changes, &samples(4, 32), 30);
    assert!(last < first, "{first} → {last}");
}

#[test]
fn frozen_networks_drop_nothing_out() {
    let start = "model.start={\"tokenizer.vision\"=\"random\", detokenizer=\"random\"}";
    let loss = |rate: &str, frozen: &str| {
        let dropout = format!("model.detokenizer.unet.dropout={rate}");
        let frozen = format!("frozen=[\"tokenizer.vision\", \"{frozen}\"]");
        first_loss(&[start, &dropout, &frozen], &samples(2, 32))
    };
    assert_eq!(loss("0.0", "detokenizer"), loss("0.5", "detokenizer"));
    assert_ne!(
        loss("0.0", "detokenizer.vae"),
        loss("0.5", "detokenizer.vae")
    );
}

/// A language model that reads the tokens adds its loss, and leaves that of diffusion as it is. Samples without text are
/// denoised only.
#[test]
fn text_is_learned_beside_diffusion() {
    let (_, tokenizer) = language("");
    let joint = "objective={kind=\"diffusion\", text_weight=2.0}";
    let changes = [joint, &tokenizer];
    let [first, last] = learn_from(&diffusion(), &changes, &samples(4, 32), 20);
    assert!(last < first / 2.0, "{first} → {last}");

    for (micro, texts) in [("4", 4), ("1", 1), ("2", 0)] {
        let mut batch = samples(4, 32);
        for sample in &mut batch[texts..] {
            sample.text = Text::None;
        }
        let micro = format!("micro_batch={micro}");
        let alone = ["objective={kind=\"diffusion\"}", &micro];
        let alone = first_loss(&alone, &batch);
        let recipe = recipe(&diffusion(), &[joint, &tokenizer, &micro]).expect("a valid recipe");
        let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
        let report = trainer.step(0, 0, &batch).expect("a step");
        let term = |name| report.losses.term(name).unwrap_or_default();
        assert_eq!(report.left_out, 0);
        assert_eq!(term("text") > 1.0, texts > 0, "{report:?}");
        assert!((term("diffusion") - alone).abs() < 1e-6, "{report:?}");
        let sum = alone + 2.0 * term("text");
        assert!((report.losses.loss() - sum).abs() < 1e-6, "{report:?}");
    }
}

/// Texts that do not fit beside diffusion are reported. Samples without text are not: they are to be denoised only.
#[test]
fn texts_beside_diffusion_that_do_not_fit_are_reported() {
    let mut batch = samples(4, 32);
    batch[1].text = Text::None;
    let (_, tokenizer) = language("");
    let joint = "objective={kind=\"diffusion\", text_weight=2.0}";
    let head = diffusion() + "max_length = 8\n";
    let recipe = recipe(&head, &[joint, &tokenizer]).expect("a valid recipe");
    let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
    let report = trainer.step(0, 0, &batch).expect("a step");
    let named = report.misfits.iter().map(|skip| &skip.key);
    assert!(named.eq([0, 2, 3].map(|index| &batch[index].key)));
    assert!(report.misfits[0].message.contains("its clip is denoised"));
    assert_eq!(report.losses.term("text"), None);
    assert_eq!(report.losses.term("diffusion"), Some(report.losses.loss()));
}

#[test]
fn rows_that_do_not_fit_are_left_out() {
    let mut batch = samples(4, 32);
    batch[1].text = Text::None;
    for (length, left_out) in [(180, 1), (8, 4)] {
        let (head, text) = language(&format!("task = \"generation\"\nmax_length = {length}"));
        let recipe = recipe(&head, &[FROZEN, &text]).expect("a valid recipe");
        let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
        let report = trainer.step(0, 0, &batch).expect("a step");
        assert_eq!(report.left_out, left_out);
        let named = report.misfits.iter().map(|skip| &skip.key);
        let expected = batch
            .iter()
            .filter(|sample| left_out == 4 || sample.text == Text::None);
        assert!(named.eq(expected.map(|sample| &sample.key)));
        assert_eq!(report.losses.loss() == 0.0, left_out == 4, "{report:?}");
    }
}

/// Sizes that do not fit an objective are refused before anything is computed.
#[test]
fn sizes_that_do_not_fit_are_refused() {
    let contrastive = head("{ kind = \"contrastive\" }", "[]");
    let autoencoder = head("{ kind = \"autoencoder\" }", "[]");
    for (head, change, what) in [
        (
            &diffusion(),
            "model.detokenizer.latent_size=[16, 16]",
            "frame_size",
        ),
        (
            &diffusion(),
            "model.detokenizer.resampler.input_dim=24",
            "input_dim",
        ),
        (
            &autoencoder,
            "model.tokenizer.frame_size=30",
            "downsampling",
        ),
        (&contrastive, "model.text.embed_dim=24", "embed_dim"),
        (
            &contrastive,
            "model.text.context_length=1",
            "context_length",
        ),
        (&contrastive, "model.text.vocab_size=100", "49408"),
    ] {
        let recipe = recipe(head, &[change]).expect("a valid recipe");
        let error = recipe.objective().err().map(|error| error.to_string());
        let error = error.unwrap_or_else(|| panic!("{change} is to be refused"));
        assert!(error.contains(what), "{change}: {error}");
    }
}

#[test]
fn micro_batches_change_nothing() {
    let batch = samples(4, 32);
    let [whole, halves] = ["micro_batch=4", "micro_batch=2"].map(|change| {
        let recipe = recipe(&diffusion(), &[change]).expect("a valid recipe");
        let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
        let reports = (0..3).map(|step| trainer.step(step, 0, &batch).expect("a step"));
        reports.collect::<Vec<_>>()
    });
    for (whole, halves) in whole.iter().zip(&halves) {
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-4;
        assert!(
            close(whole.losses.loss(), halves.losses.loss()),
            "{whole:?} {halves:?}"
        );
        assert!(
            close(whole.gradient_norm, halves.gradient_norm),
            "{whole:?} {halves:?}"
        );
    }
}

#[test]
fn micro_batches_at_once_change_no_bit() {
    let batch = samples(5, 32);
    for checkpointing in [
        "gradient_checkpointing=false",
        "gradient_checkpointing=true",
    ] {
        let [in_order, at_once] = ["at_once=1", "at_once=3"].map(|change| {
            let changes = ["micro_batch=1", change, checkpointing];
            let recipe = recipe(&diffusion(), &changes).expect("a valid recipe");
            let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
            let reports = (0..3).map(|step| trainer.step(step, 0, &batch).expect("a step"));
            reports.collect::<Vec<_>>()
        });
        assert_eq!(in_order, at_once);
    }
    // Dropout is drawn by the device, in order.
    let changes = [
        "micro_batch=1",
        "at_once=2",
        "model.detokenizer.unet.dropout=0.1",
    ];
    let recipe = recipe(&diffusion(), &changes).expect("a valid recipe");
    let error = Trainer::new(&recipe, &Device::default())
        .err()
        .map(|error| error.to_string());
    assert!(error.expect("dropout is to be refused").contains("at_once"));
}

#[test]
fn gradient_checkpointing_changes_nothing() {
    let batch = samples(2, 32);
    let (language, text) = language("task = \"generation\"\ninstructions = true");
    let recipes: [(String, &[&str]); 5] = [
        (diffusion(), &[]),
        (stage0(), &STAGE0),
        (head("{ kind = \"autoencoder\" }", "[]"), &[]),
        (head("{ kind = \"contrastive\" }", "[]"), &[]),
        (language, &[FROZEN, &text, LORA]),
    ];
    for (head, changes) in recipes {
        let [stored, recomputed] = ["false", "true"].map(|checkpointing| {
            let change = format!("gradient_checkpointing={checkpointing}");
            let changes = [changes, &[change.as_str()]].concat();
            let recipe = recipe(&head, &changes).expect("a valid recipe");
            let mut trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
            let reports = (0..3).map(|step| trainer.step(step, 0, &batch).expect("a step"));
            let numbers = reports.flat_map(|report| [report.losses.loss(), report.gradient_norm]);
            numbers.collect::<Vec<_>>()
        });
        for (stored, recomputed) in stored.iter().zip(&recomputed) {
            assert!(
                (stored / recomputed - 1.0).abs() < 1e-5,
                "{stored} {recomputed}: {head}"
            );
        }
    }
}

/// What is planned without weights is what a model with weights takes.
#[test]
fn plans_are_right() {
    struct Bytes([u64; 2]);
    impl ModuleVisitor for Bytes {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            let bytes = (value.shape().num_elements() * value.dtype().size()) as u64;
            self.0[0] += bytes;
            self.0[1] += u64::from(value.is_require_grad()) * bytes;
        }
    }
    let (language, text) = language("task = \"comprehension\"");
    for precision in ["precision=\"f32\"", "precision=\"bf16\""] {
        for (head, changes) in [
            (diffusion(), &["average=0.9", precision][..]),
            (language.clone(), &[FROZEN, &text, LORA, precision]),
        ] {
            let recipe = recipe(&head, changes).expect("a valid recipe");
            let planned = plan(&recipe, &Device::default(), 1)
                .expect("a plan")
                .learning;
            let trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
            let mut bytes = Bytes([0; 2]);
            trainer.model().visit(&mut bytes);
            let Bytes([all, trained]) = bytes;
            assert_eq!(
                [planned.parameters, planned.gradients, planned.moments],
                [all, trained, 2 * trained],
                "{head}"
            );
            let average = trained * u64::from(recipe.settings.average.is_some());
            assert_eq!(planned.average, average);
            // The sum of micro-batches, and one of each that is computed at the same time.
            let changes = [changes, &["micro_batch=1", "at_once=2"]].concat();
            let recipe = crate::common::recipe(&head, &changes).expect("a valid recipe");
            let accumulated = plan(&recipe, &Device::default(), 1)
                .expect("a plan")
                .learning;
            assert_eq!(accumulated.gradients, 3 * trained);
        }
    }
}

/// With dropout, what is recomputed draws as often as what is stored, and the loss falls.
#[test]
fn dropout_is_learned_from_with_gradient_checkpointing() {
    let (head, text) = language("task = \"comprehension\"");
    let dropout = LORA.replace("dropout=0.0", "dropout=0.2");
    let changes = [
        FROZEN,
        &text,
        &dropout,
        "gradient_checkpointing=true",
        "micro_batch=2",
    ];
    let [first, last] = learn_from(&head, &changes, &samples(4, 32), 40);
    assert!(last < first / 2.0, "{first} → {last}");
}

#[test]
fn what_does_not_fit_in_memory_is_refused() {
    let changes = [
        "model.llm.llm.hidden_size=65536",
        "model.llm.llm.intermediate_size=65536",
    ];
    let (head, text) = language("task = \"comprehension\"");
    let recipe = recipe(&head, &[&[FROZEN, &text][..], &changes].concat()).expect("a valid recipe");
    let planned = plan(&recipe, &Device::default(), 1).expect("no memory is needed");
    let bytes = planned.learning.sum();
    assert!(bytes > 1 << 39, "{bytes}");
    // Elsewhere, free memory is not known.
    if cfg!(target_os = "linux") {
        let folder = tempfile::tempdir().expect("a folder");
        let quiet = &mut |_: Event<'_>| ControlFlow::Continue(());
        let options = RunOptions::default();
        let error = run(&recipe, folder.path(), &Device::default(), &options, quiet).err();
        let line = error.expect("too much").to_string();
        assert!(line.contains("GiB of memory"), "{line}");
    }
}
