//! Checkpoints that are damaged, and runs that lead back to themselves: one line says so.

#[path = "train/common.rs"]
mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use common::{recipe, samples};
use divot::Noise;
use divot::data::write_mp4;
use divot_train::checkpoint::{self, Checkpoint};
use divot_train::{Error, Event, Recipe, RunOptions, Trainer, run};

/// First weights are drawn by the device, whose generator all tests of a process share: each holds this from its
/// first line.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A recipe of the autoencoder, whose steps are the cheapest.
fn autoencoder(clips: &Path, changes: &[&str]) -> Recipe {
    let head = format!(
        r#"steps = 3
batch = 1
average = 0.9
log_every = 1
rate.warmup = 0
objective = {{ kind = "autoencoder" }}

[[data]]
source = {{ format = "videos", path = {clips:?}, filter = {{ min_side = 16 }} }}

[validation]
every = 0

[checkpoints]
every = 1
"#
    );
    // Sizes of the other networks stay as they are.
    recipe(&head, &[&["model.start={}"], changes].concat()).expect("a valid recipe")
}

fn clips() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("0.mp4");
    write_mp4(path, samples(1, 32)[0].clips[0].frames(), 8.0).expect("a clip is written");
    folder
}

/// Goes on, up to `stop` steps more.
fn go(recipe: &Recipe, folder: &Path, stop: usize) -> Result<(), Error> {
    let options = RunOptions {
        resume: true,
        allow_changes: true,
        workers: 1,
        ..RunOptions::default()
    };
    let mut steps = 0;
    let result = run(recipe, folder, &Device::default(), &options, &mut |event| {
        steps += usize::from(matches!(event, Event::Step(_)));
        match steps == stop {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    match result {
        Ok(_) | Err(Error::Stopped) => Ok(()),
        Err(error) => Err(error),
    }
}

fn newest(folder: &Path) -> Checkpoint {
    let newest = checkpoint::newest(folder).expect("readable");
    newest.expect("a checkpoint")
}

/// The message for a file or folder, which is one line with a remedy.
fn refusal<T>(result: Result<T, Error>, path: &Path) -> String {
    let Err(error) = result else {
        panic!("{} is to be refused", path.display());
    };
    let text = error.to_string();
    println!("{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(&path.display().to_string()), "{text}");
    assert!(text.contains("; ") && !text.contains("download"), "{text}");
    text
}

#[test]
fn a_damaged_checkpoint_is_one_line() {
    let _alone = alone();
    let data = clips();
    let recipe = autoencoder(data.path(), &[]);
    let [whole, damaged] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    go(&recipe, whole.path(), usize::MAX).expect("it ends");
    go(&recipe, damaged.path(), 2).expect("it stops");
    let checkpoint = newest(damaged.path());
    let read = |name: &str| fs::read(checkpoint.folder().join(name)).expect("a file");

    for name in ["weights", "average", "optimizer", "state"] {
        let other = match name {
            "optimizer" => "weights.safetensors",
            _ => "optimizer.safetensors",
        };
        let name = match name {
            "state" => "state.json".to_owned(),
            name => format!("{name}.safetensors"),
        };
        let path = checkpoint.folder().join(&name);
        let sound = read(&name);
        let renamed = String::from_utf8_lossy(&sound[..sound.len().min(4000)])
            .find("vae.")
            .map(|at| {
                let mut bytes = sound.clone();
                bytes[at] = b'w';
                bytes
            });
        let damages = [
            Some(Vec::new()),
            Some(sound[..sound.len() / 2].to_vec()),
            Some(sound[..sound.len() - 1].to_vec()),
            Some(vec![0xff; sound.len()]),
            Some(vec![0; sound.len()]),
            Some(read(other)),
            renamed.filter(|_| name != "state.json"),
        ];
        for damage in damages.into_iter().flatten() {
            fs::write(&path, damage).expect("a file");
            refusal(go(&recipe, damaged.path(), usize::MAX), &path);
        }
        fs::remove_file(&path).expect("a file");
        // A run that had no average yet starts one.
        if name != "average.safetensors" {
            refusal(go(&recipe, damaged.path(), usize::MAX), &path);
        }
        fs::write(&path, sound).expect("a file");
    }

    // Without the checkpoint that is damaged, the run goes on from the one before it.
    fs::write(checkpoint.folder().join("optimizer.safetensors"), "none").expect("a file");
    go(&recipe, damaged.path(), usize::MAX).expect_err("it is damaged");
    fs::remove_dir_all(checkpoint.folder()).expect("a folder");
    go(&recipe, damaged.path(), usize::MAX).expect("it ends");
    let files = |folder: &Path| -> Vec<Vec<u8>> {
        let names = ["weights", "average", "optimizer"];
        let path = |name| newest(folder).folder().join(format!("{name}.safetensors"));
        names
            .map(|name| fs::read(path(name)).expect("a file"))
            .into()
    };
    assert_eq!(newest(damaged.path()).step, 3);
    assert!(files(damaged.path()) == files(whole.path()));
}

/// Faults at random places of the optimiser's header are refused or do no harm.
#[test]
fn faults_of_an_optimizer_file_never_panic() {
    let _alone = alone();
    let data = clips();
    let recipe = autoencoder(data.path(), &[]);
    let folder = tempfile::tempdir().expect("a folder");
    go(&recipe, folder.path(), 1).expect("it stops");
    let checkpoint = newest(folder.path());
    let path = checkpoint.folder().join("optimizer.safetensors");
    let sound = fs::read(&path).expect("a file");
    let header = 8 + u64::from_le_bytes(*sound.first_chunk().expect("a length")) as usize;
    let mut noise = Noise::new(3);
    let mut below = |end: usize| (noise.uniform() * end as f64) as usize;
    let mut refused = 0;
    for _ in 0..60 {
        let mut bytes = sound.clone();
        for _ in 0..1 + below(3) {
            let at = below(header);
            match below(3) {
                0 => bytes[at] ^= 1 << below(8),
                1 => bytes[at] = b"0919\"{}[]:,-"[below(12)],
                _ => bytes[at] = below(256) as u8,
            }
        }
        fs::write(&path, bytes).expect("a file");
        let trainer = Trainer::new(&recipe, &Device::default()).expect("a model");
        if let Err(error) = trainer.resume(&checkpoint) {
            let text = error.to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.contains("optimizer.safetensors"), "{text}");
            refused += 1;
        }
    }
    println!("{refused} of 60 were refused");
    assert!(refused > 30);
}

#[test]
fn a_run_that_starts_from_itself_is_refused() {
    let _alone = alone();
    let data = clips();
    let root = tempfile::tempdir().expect("a folder");
    let folders: [PathBuf; 2] = ["a", "b"].map(|name| root.path().join(name));
    for folder in &folders {
        go(&autoencoder(data.path(), &[]), folder, 1).expect("it stops");
    }
    let from =
        |folder: &Path| autoencoder(data.path(), &[&format!("model.start={{vae={folder:?}}}")]);
    let [a, b] = &folders;
    let files = fs::read_dir(newest(a).folder()).expect("a folder").count();
    // By its own name, and by another.
    for name in [a.clone(), b.join("../a")] {
        let text = refusal(go(&from(&name), a, usize::MAX), &name);
        assert!(text.contains("own folder"), "{text}");
    }
    assert_eq!(newest(a).step, 1);
    assert_eq!(
        fs::read_dir(newest(a).folder()).expect("a folder").count(),
        files
    );

    // Two that start from each other.
    for (folder, other) in [(a, b), (b, a)] {
        let path = newest(folder).folder().join("state.json");
        let state = fs::read_to_string(&path).expect("a state");
        let start = format!("\"start\": [{{\"part\": \"vae\", \"folder\": {other:?}}}]");
        let changed = state.replace("\"start\": []", &start);
        assert_ne!(changed, state);
        fs::write(&path, changed).expect("a state");
    }
    let third = root.path().join("c");
    let text = refusal(go(&from(a), &third, usize::MAX), root.path());
    assert!(text.contains("starts from itself"), "{text}");
    assert!(!third.exists());
}
