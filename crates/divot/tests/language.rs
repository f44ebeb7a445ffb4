//! Conversion of the language model, and conversations, with the fixture's small random weights.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use divot::checkpoint::{Checkpoint, Part};
use divot::convert::{Job, Lora, ReleasedConfig, Report, convert};
use divot::data::{Frame, Video, write_gif, write_png};
use divot::language::{Context, Prompt, Quantization, Rules, Shown, TextSampling, TextTokenizer};
use divot::pipeline::{Clips, ignore};
use divot::weights::{Source, TensorSpec, write_safetensors};
use divot::{
    Chat, Error, GenerationConfig, Noise, OpenLlm, Pipeline, StoryEnd, StoryPart, Tokenizer,
    VideoLlm,
};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixture")
}

fn pretrained(name: &str) -> PathBuf {
    fixture().join("pretrained").join(name)
}

fn converted(part: Part, lora: Lora, from: &[PathBuf], to: &Path) -> Result<Report, Error> {
    let sizes = ReleasedConfig::read(&fixture().join("config.json")).unwrap();
    let job = Job {
        lora,
        ..Job::of(part, from)
    };
    convert(&job, &sizes, to, FloatDType::F32, |_| {
        ControlFlow::Continue(())
    })
}

const KEEP: Lora = Lora::Keep { alpha: None };
const MERGE: Lora = Lora::Merge { alpha: None };

fn released() -> [PathBuf; 3] {
    [
        pretrained("Divot_sft_gen/llm"),
        pretrained("Divot_sft_gen/agent/pytorch_model.bin"),
        pretrained("cvlm_mistral_instruct_tokenizer"),
    ]
}

fn load(folder: &Path, part: Part, quantization: Option<Quantization>) -> Result<VideoLlm, Error> {
    let mut checkpoint = Checkpoint::new(folder, &Device::flex());
    OpenLlm::open(&checkpoint, part)?.load(&mut checkpoint, quantization)
}

fn llm(folder: &Path) -> Arc<VideoLlm> {
    converted(Part::Llm, KEEP, &released(), folder).unwrap();
    Arc::new(load(folder, Part::Llm, None).unwrap())
}

/// Checks that an error is one line and contains each of the words.
fn says(error: &Error, words: &[&str]) {
    let line = divot::one_line(error);
    assert!(!line.contains('\n'), "{line}");
    for word in words {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
}

/// Reads the tensors of a checkpoint, in f32.
fn tensors(path: &Path) -> BTreeMap<String, TensorData> {
    let source = Source::open(path).unwrap();
    source
        .tensors()
        .map(|t| (t.name.clone(), t.read().unwrap().convert_dtype(DType::F32)))
        .collect()
}

fn write(path: &Path, tensors: &BTreeMap<String, TensorData>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, data)| TensorSpec {
            name: name.clone(),
            shape: data.shape().to_vec(),
            dtype: DType::F32,
        })
        .collect();
    let all: Vec<TensorData> = tensors.values().cloned().collect();
    write_safetensors(path, &specs, &BTreeMap::new(), |i| Ok(all[i].clone())).unwrap();
}

fn rows(data: &TensorData, count: usize) -> TensorData {
    let width = data.shape()[1];
    let values: Vec<f32> = data.iter::<f32>().take(count * width).collect();
    TensorData::new(values, [count, width])
}

/// Returns the fixture's decoder as it was before its vocabulary grew, and its number of tokens then.
fn before_growth(folder: &Path) -> (BTreeMap<String, TensorData>, usize) {
    let mut weights = tensors(&pretrained("Divot_sft_gen/llm"));
    let old = weights["lm_head.weight"].shape()[0] - 262;
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let short = rows(&weights[name], old);
        weights.insert(name.to_owned(), short);
    }
    write(&folder.join("model.safetensors"), &weights);
    let config = pretrained("Divot_sft_gen/llm").join("config.json");
    fs::copy(config, folder.join("config.json")).unwrap();
    (weights, old)
}

#[test]
fn a_plain_mistral_gets_the_tokens_of_video() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    let (_, old) = before_growth(&base);
    let model = pretrained("cvlm_mistral_instruct_tokenizer").join("tokenizer.model");
    fs::copy(model, base.join("tokenizer.model")).unwrap();
    let report = converted(Part::Mistral, KEEP, &[base], dir.path()).unwrap();
    assert_eq!(report.fresh.len(), 8, "{report}");
    let llm = load(dir.path(), Part::Mistral, None).unwrap();
    assert_eq!(llm.text.vocab_size(), old + 262);
    assert_eq!(llm.model.llm.embed_tokens.weight.dims()[0], old + 262);
}

#[test]
fn new_rows_are_the_mean_and_three_times_the_mean() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    let (weights, old) = before_growth(&base);
    let tokenizer = pretrained("cvlm_mistral_instruct_tokenizer");
    let report = converted(Part::Mistral, KEEP, &[base, tokenizer], dir.path()).unwrap();
    assert_eq!(report.fresh.len(), 8, "{report}");

    let llm = load(dir.path(), Part::Mistral, None).unwrap();
    let check = |name: &str, table: Tensor<2>, factor: f64| {
        let [all, width] = table.dims();
        assert_eq!(all, old + 262);
        let before = Tensor::<2>::from_data(weights[name].clone(), &Device::flex());
        let kept = table.clone().narrow(0, 0, old) - before.clone();
        assert_eq!(kept.abs().max().into_scalar::<f32>(), 0.0, "{name}");
        let mean = before.mean_dim(0) * factor;
        let new = table.narrow(0, old, 262) - mean.expand([262, width]);
        assert!(new.abs().max().into_scalar::<f32>() < 1e-6, "{name}");
    };
    let decoder = &llm.model.llm;
    check(
        "model.embed_tokens.weight",
        decoder.embed_tokens.weight.val(),
        1.0,
    );
    let divot::language::Projection::Dense(head) = &decoder.lm_head else {
        panic!("the head is dense")
    };
    check("lm_head.weight", head.weight.val().transpose(), 3.0);
    // Projections are initialised as PyTorch initialises linear layers: within 1 / sqrt(inputs), not zero.
    let fc1 = llm.model.input_proj.fc1.weight.val();
    let bound = 1.0 / (fc1.dims()[0] as f32).sqrt();
    let largest = fc1.abs().max().into_scalar::<f32>();
    assert!(
        largest <= bound && largest > 0.9 * bound,
        "{largest} {bound}"
    );
}

#[test]
fn what_a_language_model_lacks_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let [decoder, agent, tokenizer] = released();
    let fails = |from: &[PathBuf]| converted(Part::Llm, KEEP, from, dir.path()).unwrap_err();
    says(
        &fails(&[decoder.clone(), agent.clone()]),
        &["no text tokenizer", "add the folder"],
    );
    says(
        &fails(&[decoder.clone(), tokenizer.clone()]),
        &["input_resampler.proj.0.bias"],
    );
    says(
        &fails(&[agent.clone(), tokenizer.clone()]),
        &["config.json", "to the sources"],
    );

    // If a shard is missing, the error names the shard and not the tensors in it.
    let broken = dir.path().join("broken");
    fs::create_dir(&broken).unwrap();
    for entry in fs::read_dir(&decoder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_owned();
        if !name.to_string_lossy().contains("00001-of") {
            fs::copy(&path, broken.join(name)).unwrap();
        }
    }
    says(&fails(&[broken, agent, tokenizer]), &["00001-of"]);
    assert!(!dir.path().join("llm").exists());
}

#[test]
fn vocabularies_that_do_not_match_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [_, agent, tokenizer] = released();
    let short = dir.path().join("short");
    let mut weights = tensors(&pretrained("Divot_sft_gen/llm"));
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let cut = rows(&weights[name], 600);
        weights.insert(name.to_owned(), cut);
    }
    write(&short.join("model.safetensors"), &weights);
    let config = pretrained("Divot_sft_gen/llm").join("config.json");
    fs::copy(config, short.join("config.json")).unwrap();
    let error = converted(
        Part::Llm,
        KEEP,
        &[short, agent, tokenizer.clone()],
        dir.path(),
    );
    says(&error.unwrap_err(), &["622 tokens", "600 rows"]);

    // After the conversion: another model's tokenizer is put into the folder.
    llm(dir.path());
    let json = dir.path().join("llm/tokenizer.json");
    let text = fs::read_to_string(&json).unwrap();
    let plain = text.replace("<vid>", "<dog>");
    assert_ne!(text, plain);
    fs::write(&json, plain).unwrap();
    says(
        &load(dir.path(), Part::Llm, None).unwrap_err(),
        &["`<vid>`"],
    );
    fs::remove_file(&json).unwrap();
    says(
        &load(dir.path(), Part::Llm, None).unwrap_err(),
        &["tokenizer.json"],
    );
    let config = dir.path().join("llm/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("\"vocab_size\": 622", "\"vocab_size\": 600"),
    )
    .unwrap();
    TextTokenizer::open(&tokenizer)
        .unwrap()
        .save(&json)
        .unwrap();
    says(
        &load(dir.path(), Part::Llm, None).unwrap_err(),
        &["622 tokens"],
    );
}

// ---- LoRA

fn lora_sources(checkpoint: PathBuf) -> [PathBuf; 3] {
    let [decoder, _, tokenizer] = released();
    [checkpoint, decoder, tokenizer]
}

#[test]
fn loras_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = tensors(&pretrained("Divot_lora"));
    let a = good.keys().find(|n| n.contains("lora_A")).unwrap().clone();
    let b = a.replace("lora_A", "lora_B");
    let file = dir.path().join("lora/model.safetensors");
    let fails = |weights: &BTreeMap<String, TensorData>, lora: Lora| {
        write(&file, weights);
        let sources = lora_sources(file.clone());
        let error = converted(Part::Llm, lora, &sources, dir.path()).unwrap_err();
        assert!(!dir.path().join("llm").exists());
        error
    };
    // Different ranks, a vector instead of a matrix, one matrix without the other, another adapter's name,
    // and no LoRA at all.
    let input = good[&a].shape()[1];
    let mut weights = good.clone();
    weights.insert(a.clone(), TensorData::zeros::<f32, _>([4, input]));
    says(&fails(&weights, MERGE), &["product does not fit"]);
    let output = good[&b].shape()[0];
    weights = good.clone();
    weights.insert(b.clone(), TensorData::zeros::<f32, _>([output]));
    says(&fails(&weights, MERGE), &["product does not fit"]);
    weights = good.clone();
    weights.remove(&b);
    says(&fails(&weights, MERGE), &["lora_A", "would be lost"]);
    weights = good.clone();
    let mine = weights.remove(&a).unwrap();
    weights.insert(a.replace("default", "mine"), mine);
    says(&fails(&weights, MERGE), &["mine", "would be lost"]);
    let plain = tensors(&pretrained("Divot_sft_gen/llm"));
    says(&fails(&plain, MERGE), &["no LoRA to merge"]);
}

#[test]
fn alpha_comes_from_peft_where_it_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lora/model.safetensors");
    write(&file, &tensors(&pretrained("Divot_lora")));
    let merged = |lora: Lora| {
        converted(Part::Llm, lora, &lora_sources(file.clone()), dir.path()).unwrap();
        fs::read(dir.path().join("llm/model.safetensors")).unwrap()
    };
    let (two, six) = (merged(MERGE), merged(Lora::Merge { alpha: Some(6.0) }));
    assert_ne!(two, six, "alpha matters");
    let config = dir.path().join("lora/adapter_config.json");
    fs::write(&config, r#"{"lora_alpha": 6, "r": 2}"#).unwrap();
    assert_eq!(merged(MERGE), six);
    assert_eq!(merged(Lora::Merge { alpha: Some(2.0) }), two);
    fs::write(&config, r#"{"lora_alpha": 6, "use_rslora": true}"#).unwrap();
    let scaled = merged(Lora::Merge {
        alpha: Some(6.0 * 2f64.sqrt()),
    });
    assert_eq!(merged(MERGE), scaled);
}

#[test]
fn the_first_source_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    // The decoder that the adapter was trained from, under PEFT's name, and another one.
    let [decoder, _, tokenizer] = released();
    let mut other = tensors(&decoder);
    for data in other.values_mut() {
        *data = TensorData::zeros::<f32, _>(data.shape().clone());
    }
    let zeros = dir.path().join("zeros");
    write(&zeros.join("model.safetensors"), &other);
    fs::copy(decoder.join("config.json"), zeros.join("config.json")).unwrap();
    let merged = |base: PathBuf| {
        let from = [pretrained("Divot_lora"), base, tokenizer.clone()];
        converted(Part::Llm, MERGE, &from, dir.path()).unwrap();
        fs::read(dir.path().join("llm/model.safetensors")).unwrap()
    };
    assert_eq!(merged(decoder.clone()), merged(zeros));
}

#[test]
fn lora_beside_its_weights_cannot_keep_fewer_bits() {
    let dir = tempfile::tempdir().unwrap();
    let sources = lora_sources(pretrained("Divot_lora"));
    converted(Part::Llm, KEEP, &sources, dir.path()).unwrap();
    assert!(load(dir.path(), Part::Llm, None).is_ok());
    let error = load(dir.path(), Part::Llm, Some(Quantization::Q8)).unwrap_err();
    says(&error, &["LoRA", "LoRA merged"]);
}

// ---- Conversations

fn greedy(tokens: usize) -> GenerationConfig {
    GenerationConfig {
        text: TextSampling::greedy().with_max_new_tokens(tokens),
        ..GenerationConfig::default()
    }
}

fn features(clips: usize, llm: &VideoLlm) -> Tensor<3> {
    let shape = [clips, llm.model.num_queries, llm.model.token_dim()];
    Noise::new(5).normal(shape, &Device::flex())
}

/// Generates greedy text after a prompt that is read at once.
fn continued(
    llm: &VideoLlm,
    prompt: &Prompt,
    features: Option<Tensor<3>>,
    stop: &[u32],
    tokens: usize,
) -> Vec<u32> {
    let mut context = Context::new(&llm.model.llm, 1, llm.dtype);
    llm.model.read(&mut context, prompt, features).unwrap();
    let order = llm.tokens.order();
    let sampling = TextSampling::greedy().with_max_new_tokens(tokens);
    let rules = Rules {
        sampling: &sampling,
        stop,
        order: Some(&order),
        window: llm.model.window(),
    };
    let go_on = |_| ControlFlow::Continue(());
    let noise = &mut Noise::new(0);
    let generated = llm.model.llm.generate(&mut context, rules, noise, go_on);
    generated.unwrap().ids
}

#[test]
fn a_second_question_is_read_behind_all_that_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let llm = llm(dir.path());
    let shown = features(2, &llm);
    let question = Prompt::question(&llm.text, &llm.tokens, Shown::Video(2), "What is this?");
    let question = question.unwrap();
    let mut chat = Chat::new(llm.clone(), greedy(9));
    let go_on = |_: &str| ControlFlow::Continue(());
    let first = chat.start(&question, Some(shown.clone()), go_on).unwrap();
    // A refused question changes nothing.
    assert!(chat.ask("  ", go_on).is_err());
    assert!(chat.ask(&"long ".repeat(20_000), go_on).is_err());
    // A question whose answer is stopped changes nothing either.
    let stopped = chat.ask("Stop!", |_| ControlFlow::Break(()));
    assert!(stopped.is_err_and(|error| error.is_stopped()));
    let second = chat.ask("And what is that?", go_on).unwrap();

    let eos = llm.text.eos();
    let mut all = question;
    assert_eq!(
        first.ids,
        continued(&llm, &all, Some(shown.clone()), &[eos], 9)
    );
    all.ids.extend(&first.ids);
    let next = Prompt::follow_up(&llm.text, "And what is that?")
        .unwrap()
        .ids;
    assert_eq!(next[0], eos);
    let said_eos = usize::from(first.complete);
    all.ids.extend(&next[said_eos..]);
    assert_eq!(second.ids, continued(&llm, &all, Some(shown), &[eos], 9));
    assert_ne!(first.ids, second.ids);
}

#[test]
fn describe_shows_a_video_and_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let llm = llm(dir.path());
    let from = [
        pretrained("Divot_tokenizer_detokenizer/Divot_tokenizer.bin"),
        pretrained("CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin"),
    ];
    converted(Part::Tokenizer, KEEP, &from, dir.path()).unwrap();
    let mut checkpoint = Checkpoint::new(dir.path(), &Device::flex());
    let (tokenizer, _) = Tokenizer::load(&mut checkpoint).unwrap();
    let frames: Vec<Frame> = (0..40)
        .map(|t| Frame::filled(32, 24, [6 * t, 90, 200]).unwrap())
        .collect();
    let (clip, picture) = (dir.path().join("clip.gif"), dir.path().join("picture.png"));
    write_gif(&clip, &frames, 10.0).unwrap();
    write_png(&picture, &frames[30]).unwrap();

    let pipeline = Pipeline::open(dir.path(), &Device::flex()).unwrap();
    let described = |path: &Path, clips| {
        let video = Video::open(path).unwrap();
        let answer = pipeline.describe(&video, clips, "What is this?", &greedy(8), &mut ignore);
        answer.unwrap().1
    };
    let asked = |shown, features| {
        let prompt = Prompt::question(&llm.text, &llm.tokens, shown, "What is this?").unwrap();
        let mut chat = Chat::new(llm.clone(), greedy(8));
        let go_on = |_: &str| ControlFlow::Continue(());
        chat.start(&prompt, Some(features), go_on).unwrap()
    };
    let video = Video::open(&clip).unwrap();
    let go_on = |_, _| ControlFlow::Continue(());
    let features = tokenizer.tokenize_video(&video, 2, go_on).unwrap();
    assert_eq!(features.dims()[0], 2);
    assert_eq!(
        described(&clip, Clips::AtMost(2)),
        asked(Shown::Video(2), features)
    );
    let image = Video::open(&picture).unwrap();
    let features = tokenizer.tokenize_clip(&tokenizer.clip_reader().image(&image).unwrap());
    assert_eq!(
        described(&picture, Clips::Image),
        asked(Shown::Image, features)
    );
}

fn told(llm: &VideoLlm) -> Prompt {
    Prompt::instruction(&llm.text, "Tell a story.").unwrap()
}

#[test]
fn the_next_scene_has_seen_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let llm = llm(dir.path());
    let config = greedy(6);
    let mut texts = [Vec::new(), Vec::new()];
    let mut scene = 0;
    let story = llm
        .story(&told(&llm), 2, &config, |part| {
            match part {
                StoryPart::Text(text) => texts[scene.min(1)].push(text.to_owned()),
                StoryPart::Scene(number, made) => {
                    assert_eq!(number, scene + 1);
                    assert!(made.features.dims()[1] == llm.model.num_queries);
                    scene = number;
                }
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((story.scenes.len(), story.end), (2, StoryEnd::Scenes));
    assert_eq!(texts[0].concat().trim(), story.scenes[0].text);

    // Everything at once: the text, the marks, and the features of the first clip.
    let mut all = told(&llm);
    let stop = [llm.tokens.video, llm.text.eos()];
    let text = continued(&llm, &all, None, &stop, 6);
    let started = text.last() == Some(&llm.tokens.video);
    assert_eq!(story.scenes[0].forced, !started);
    all.ids.extend(text);
    if !started {
        all.ids.push(llm.tokens.video);
    }
    all.ids.push(llm.tokens.clip);
    all.clips.push(all.ids.len());
    all.ids.extend(Prompt::clip_features(&llm.tokens).ids);
    let features = story.scenes[0].features.clone();
    let text = continued(&llm, &all, Some(features.clone()), &stop, 6);
    let second = llm.text.decode(&text, true).unwrap();
    assert_eq!(second.trim(), story.scenes[1].text);
    // Other features give another text.
    let other = continued(&llm, &all, Some(features * -3.0), &stop, 6);
    assert_ne!(text, other);
}

#[test]
fn a_story_that_fills_the_window_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    llm(dir.path());
    let config = dir.path().join("llm/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let narrow = text.replace(
        "\"max_position_embeddings\": 32768",
        "\"max_position_embeddings\": 190",
    );
    assert_ne!(text, narrow);
    fs::write(&config, narrow).unwrap();
    let llm = load(dir.path(), Part::Llm, None).unwrap();
    let go_on = |_: StoryPart<'_>| ControlFlow::Continue(());
    let prompt = told(&llm);
    let story = llm.story(&prompt, 9, &greedy(4), go_on).unwrap();
    assert_eq!(story.end, StoryEnd::Window);
    assert!(!story.scenes.is_empty());
    let error = llm.story(&prompt, 0, &greedy(4), go_on).unwrap_err();
    says(&error, &["scenes"]);
}
