//! Recipes: what is refused, and with which line.

use std::fs;
use std::path::Path;

use crate::common::{self, recipe};
use burn::config::Config;
use burn::tensor::Device;
use divot::TokenizerConfig;
use divot_train::{Recipe, Trainer};

const HEAD: &str = r#"steps = 10
batch = 4
frozen = ["tokenizer.vision", "detokenizer.vae"]

[objective]
kind = "diffusion"

[[data]]
source = { format = "videos", path = "clips" }

[rate]
warmup = 2
"#;

fn refusal(head: &str, changes: &[&str]) -> String {
    let error = recipe(head, changes).expect_err("it is to be refused");
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn a_recipe_is_read() {
    let recipe = recipe(
        HEAD,
        &[
            "rate.peak=2e-4",
            "data.0.weight=3",
            "seed=7",
            "model.start.\"tokenizer.vision\"=\"elsewhere\"",
            "micro_batch=8",
        ],
    )
    .expect("valid");
    assert_eq!(recipe.settings.rate.peak, 2e-4);
    assert_eq!(recipe.settings.data[0].weight, 3.0);
    assert_eq!(recipe.settings.seed, 7);
    let folders: Vec<_> = recipe
        .start
        .iter()
        .map(|start| start.folder.clone())
        .collect();
    assert_eq!(folders, [None, Some("elsewhere".into())]);
    assert_eq!(recipe.settings.micro_batch(), 4);
    assert_eq!(recipe.model.tokenizer.frame_size, 32);
}

/// What takes a clip's tokens follows the tokenizer, unless the recipe says otherwise, which then contradicts it.
#[test]
fn sizes_that_follow_are_derived() {
    let sizes = |changes: &[&str]| {
        let model = recipe(HEAD, changes).expect("valid").model;
        let width = model.detokenizer.resampler.input_dim;
        [width, model.llm.num_queries, model.llm.head.token_dim()]
    };
    assert_eq!(sizes(&[]), [16, 8, 16]);
    let tokens =
        ["tokens=6", "token_dim=24"].map(|size| format!("model.tokenizer.resampler.{size}"));
    assert_eq!(sizes(&tokens.each_ref().map(String::as_str)), [24, 6, 24]);
    // Five frames of 2 x 2 positions, 32 wide.
    let patches = "model.tokenizer.resampler.perceiver=false";
    assert_eq!(sizes(&[patches]), [32, 20, 32]);
    assert_eq!(sizes(&[patches, "model.llm.num_queries=8"]), [32, 8, 32]);
    let head = "model.llm.head={Denoising={width=32, depth=1}}";
    assert_eq!(sizes(&[patches, head]), [32, 20, 32]);
    assert_eq!(sizes(&["model.llm.head={Regression={}}"]), [16, 8, 16]);

    // So do those of a folder that has a tokenizer.
    let folder = tempfile::tempdir().expect("a folder");
    let released = TokenizerConfig::divot();
    let part = folder.path().join("tokenizer");
    std::fs::create_dir(&part).expect("a folder");
    released
        .save(part.join("config.json"))
        .expect("a configuration");
    let text = format!(
        "{HEAD}[model]\nsizes = {:?}\n[model.start]\n\"tokenizer.vision\" = \"random\"\n\
         \"detokenizer.vae\" = \"random\"\n[model.tokenizer.resampler]\ntoken_dim = 96\n\
         [model.llm.head.Regression]\n",
        folder.path()
    );
    let model = Recipe::parse(Path::new("a.toml"), "a", &text, &[])
        .expect("valid")
        .model;
    assert_eq!(model.detokenizer.resampler.input_dim, 96);
    assert_eq!(model.llm.head.token_dim(), 96);

    let said = "model.detokenizer.resampler.input_dim=16";
    let error = recipe(HEAD, &[patches, said])
        .expect("each is valid")
        .objective();
    let error = error.err().expect("they contradict each other").to_string();
    assert!(error.contains("input_dim"), "{error}");
}

#[test]
fn timesteps_are_those_of_the_schedule() {
    let drawn = |last: usize| {
        let timesteps = format!("objective.timesteps=[400, {last}]");
        recipe(HEAD, &[&timesteps]).expect("valid").objective()
    };
    assert!(drawn(1000).is_ok());
    let error = drawn(1001).err().expect("it is refused").to_string();
    assert!(error.contains("1000 timesteps"), "{error}");
}

#[test]
fn mistakes_are_named_with_their_line() {
    let cases = [
        // What is changed in the recipe, its line, and what the message holds.
        (("steps = 10", "steps = 0"), 1, "`steps`"),
        (("steps = 10", "stepps = 10"), 1, "stepps"),
        (("batch = 4", "batch = \"four\""), 2, "string"),
        (
            (
                "kind = \"diffusion\"",
                "kind = \"diffusion\"\ntimesteps = [9, 9]",
            ),
            7,
            "start below end",
        ),
        (("batch = 4", "batch = 4\nmicro_batch = 3"), 3, "divisor"),
        (("warmup = 2", "warmup = 10"), 12, "less than `steps`"),
        (("warmup = 2", "peek = 1"), 12, "peek"),
        (("\"videos\"", "\"vidoes\""), 9, "vidoes"),
        (("\"diffusion\"", "\"difusion\""), 6, "difusion"),
        (
            ("kind = \"diffusion\"", "kind = \"diffusion\"\ndropped = 2"),
            7,
            "from 0 to 1",
        ),
        (
            (
                "\"tokenizer.vision\", ",
                "\"tokenizer\", \"detokenizer.unet\", ",
            ),
            3,
            "detokenizer.unet",
        ),
        (
            (
                "path = \"clips\"",
                "path = \"clips\", columns = { video = \"a\", caption = \"b\" }",
            ),
            9,
            "columns",
        ),
        (
            (
                "path = \"clips\"",
                "path = \"clips\", filter = { min_seconds = 9.0, max_seconds = 2.0 }",
            ),
            9,
            "max_seconds",
        ),
        (("[rate]", "task = \"generation\"\n[rate]"), 11, "`task`"),
        (
            (
                "kind = \"diffusion\"",
                "kind = \"diffusion\"\nkl_weight = 0.1",
            ),
            7,
            "variational",
        ),
        (
            (
                "kind = \"diffusion\"",
                "kind = \"diffusion\"\ntext_weight = 0",
            ),
            7,
            "above 0",
        ),
        (
            (
                "kind = \"diffusion\"",
                "kind = \"diffusion\"\nframes = 1\ntext_weight = 1",
            ),
            7,
            "reads clips",
        ),
        (
            (
                "kind = \"diffusion\"",
                "kind = \"diffusion\"\ntext_weight = 1",
            ),
            7,
            "a source with text",
        ),
        (
            (
                "\"diffusion\"\n\n[[data]]\nsource = { format = \"videos\", path = \"clips\" }",
                "\"diffusion\"\ntext_weight = 1\n\n[[data]]\nsource = { format = \"captions\", path = \"clips\" }\ntask = \"generation\"",
            ),
            11,
            "these are predicted",
        ),
        (
            (
                "\"tokenizer.vision\", \"detokenizer.vae\"]\n\n[objective]\nkind = \"diffusion\"",
                "\"tokenizer\", \"detokenizer.vae\"]\n\n[objective]\nkind = \"diffusion\"\ntext_weight = 1",
            ),
            7,
            "a tokenizer that learns",
        ),
        (
            (
                "\"diffusion\"\n\n[[data]]\nsource = { format = \"videos\", path = \"clips\" }",
                "\"diffusion\"\ntext_weight = 1\n\n[[data]]\nsource = { format = \"texts\", path = \"clips\" }",
            ),
            10,
            "texts have no clips",
        ),
        (
            (
                "\"diffusion\"\n\n[[data]]\nsource = { format = \"videos\", path = \"clips\" }",
                "\"diffusion\"\ntext_weight = 1\n\n[[data]]\nsource = { format = \"captions\", path = \"clips\" }\n\n[[data]]\nsource = { format = \"videos\", path = \"clips\" }\ntask = \"comprehension\"",
            ),
            14,
            "this source has none",
        ),
        (("\"diffusion\"", "\"contrastive\""), 9, "text"),
        (
            (
                "\"diffusion\"\n\n[[data]]\nsource = { format = \"videos\"",
                "\"contrastive\"\n\n[[data]]\nsource = { format = \"questions\"",
            ),
            9,
            "needs captions",
        ),
        (
            (
                "\"diffusion\"\n\n[[data]]\nsource = { format = \"videos\"",
                "\"autoencoder\"\n\n[[data]]\nsource = { format = \"texts\"",
            ),
            9,
            "texts have no clips",
        ),
        (
            (
                "\"diffusion\"\n\n[[data]]\nsource = { format = \"videos\"",
                "\"adaptation\"\n\n[[data]]\nsource = { format = \"questions\"",
            ),
            9,
            "questions are answered",
        ),
        (
            (
                "\"diffusion\"\n\n[[data]]\nsource = { format = \"videos\", path = \"clips\" }",
                "\"language\"\n\n[[data]]\nsource = { format = \"story\", path = \"clips\" }\ntask = \"generation\"",
            ),
            10,
            "stories are told",
        ),
        (
            ("\"diffusion\"", "\"language\"\nguidance = 2.0"),
            7,
            "to name a `detokenizer`",
        ),
        (("steps = 10", "steps = = 10"), 1, ""),
    ];
    for ((from, to), line, what) in cases {
        assert!(HEAD.contains(from), "{from}");
        let text = refusal(&HEAD.replace(from, to), &[]);
        assert!(
            text.contains(&format!("tiny.toml:{line}: ")),
            "{to}: {text}"
        );
        assert!(text.contains(what), "{to}: {text}");
    }
}

#[test]
fn settings_are_named_where_they_are_wrong() {
    for (change, what) in [
        ("steps", "no `key=value`"),
        ("steps=none", "string"),
        ("rate.warmup=99", "less than `steps`"),
        ("data.1.weight=2", "a list of 1"),
        ("data.first={weight=2}", "a list of 1"),
        ("data.0.weight=0", "`weight` above 0"),
        ("data.0.batch=0", "`batch` of at least 1"),
        ("steps.more=2", "no keys below it"),
        ("model.tokenizer.vision.widht=2", "widht"),
        ("model.sizes=huge", "huge"),
        (
            "data.0.source={format=\"cache\", path=\"a\", filter={min_side=3}}",
            "chosen when it was made",
        ),
        ("model.llm.head={Regression={dims=16}}", "dims"),
        ("model.llm.head={Gmm={dims=16}}", "dims"),
        ("model.llm.head={Linear={dim=16}}", "Linear"),
    ] {
        let text = refusal(HEAD, &[change]);
        assert!(text.contains(change), "{change}: {text}");
        assert!(text.contains(what), "{change}: {text}");
    }
}

#[test]
fn a_source_can_be_replaced_from_outside() {
    let source = "data.0={source={format=\"videos\", path=\"others\"}, weight=2.5}";
    let recipe = recipe(HEAD, &[source]).expect("valid");
    assert_eq!(recipe.settings.data[0].weight, 2.5);
    assert_eq!(recipe.settings.data[0].source.path, [Path::new("others")]);
}

/// What compares all of a batch is not given a part of one.
#[test]
fn no_batch_of_pairs_is_divided() {
    let head = HEAD
        .replace("\"diffusion\"", "\"contrastive\"")
        .replace("\"videos\"", "\"captions\"")
        .replace("frozen = [\"tokenizer.vision\", \"detokenizer.vae\"]\n", "");
    assert!(recipe(&head, &["data.0.batch=2"]).is_ok());
    let text = refusal(&head, &["data.0.batch=8"]);
    assert!(
        text.contains("`micro_batch`") && text.contains("larger"),
        "{text}"
    );
}

#[test]
fn what_is_seldom_meant_is_remarked() {
    let remarks = |changes: &[&str]| recipe(HEAD, changes).expect("valid").remarks().join("\n");
    let unlike = remarks(&[]);
    assert!(
        unlike.contains("validation.data") && !unlike.contains("not frozen"),
        "{unlike}"
    );
    let open = remarks(&["frozen=[\"tokenizer.vision\"]", "validation.every=0"]);
    assert!(
        open.starts_with("`detokenizer.vae` is not frozen"),
        "{open}"
    );
}

#[test]
fn what_is_frozen_starts_from_something() {
    let recipe = recipe(HEAD, &["frozen=[\"tokenizer\", \"detokenizer.vae\"]"]).expect("valid");
    let trainer = Trainer::new(&recipe, &Device::default());
    let text = trainer.err().expect("it is refused").to_string();
    assert!(text.contains("`tokenizer.resampler."), "{text}");
    assert!(text.contains("no weights to start from"), "{text}");
}

#[test]
fn parts_that_a_model_has_not_are_named_with_their_line() {
    let refusal = |recipe: &Recipe| {
        let trainer = Trainer::new(recipe, &Device::default());
        trainer.err().expect("it is to be refused").to_string()
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = common::write(folder.path().join("tiny.toml"), HEAD);
    let text = fs::read_to_string(&path).expect("the recipe");
    let text = text.replace(
        "\"detokenizer.vae\" = \"random\"",
        "\"detokenizer.vae\" = \"random\"\n\"detokenizer.vea\" = \"random\"",
    );
    fs::write(&path, &text).expect("the recipe");
    let line = text.lines().position(|line| line.contains("vea"));
    let line = line.expect("it was put there") + 1;
    let said = refusal(&Recipe::read(&path, &[]).expect("valid by itself"));
    assert!(said.contains(&format!("tiny.toml:{line}: ")), "{said}");
    assert!(said.contains("`detokenizer.vea` is no part"), "{said}");

    let change = "model.start.\"tokenizer.vison\"=\"random\"";
    let said = refusal(&recipe(HEAD, &[change]).expect("valid by itself"));
    assert!(said.contains(change), "{said}");
}

#[test]
fn differences_are_named() {
    let [old, new] = [&[][..], &["rate.peak=0.5", "micro_batch=2"]]
        .map(|changes| recipe(HEAD, changes).expect("valid"));
    assert_eq!(
        new.differences(&old.text),
        [
            (
                "micro_batch".to_owned(),
                "nothing".to_owned(),
                "2".to_owned()
            ),
            (
                "rate.peak".to_owned(),
                "nothing".to_owned(),
                "0.5".to_owned()
            ),
        ]
    );
    assert_eq!(old.differences(&old.text), []);
}

/// Paths of data and weights may be missing here; everything else is to be right.
#[test]
fn the_recipes_of_the_examples_are_valid() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/recipes");
    let mut count = 0;
    let folders = [folder.to_owned(), format!("{folder}/tiny")];
    let entries = folders.map(|folder| std::fs::read_dir(folder).expect("the recipes"));
    let paths = entries.into_iter().flatten();
    let paths = paths.map(|entry| entry.expect("an entry").path());
    for path in paths.filter(|path| path.is_file()) {
        let recipe = Recipe::read(&path, &[]);
        let recipe = recipe.unwrap_or_else(|error| panic!("{error}"));
        // What a language model's text tokenizer is is only known where it is, or where the model starts from.
        let model = &recipe.settings.model;
        if model.text_tokenizer.is_none() && !model.start.contains_key("llm") {
            recipe.objective().expect("sizes that fit the objective");
        }
        count += 1;
    }
    assert!(count >= 23, "{count}");
}
