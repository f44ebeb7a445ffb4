//! `cargo xtask bench`: measures the time and memory of the networks at full size. With `--peer`, it runs
//! PyTorch or llama.cpp in alternation.

mod data;
mod language;
mod training;
mod turns;
mod works;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use turns::{Measured, Side, take_turns};

/// Arguments of `bench`.
#[derive(Args, Clone)]
#[command(after_help = "\
Examples:
  cargo xtask bench --only unet --repeat 3
  cargo xtask bench --only unet --only train-small --peer
  cargo xtask bench --only train-small --checkpointing
  cargo xtask bench --only unet --profile
  cargo xtask bench --peer --check
  cargo xtask bench --peer llama.cpp --dtype q4
  cargo xtask bench --only llm --model models/divot --dtype q4
  cargo xtask bench --only data --peer --threads 2

Weights are random. Sizes are the released ones, except for the training steps and the language model, which
has 1.1 B parameters (0.2 B for llm and llm-cache). Each work runs in its own process, so its peak memory is
its own. With --peer, two processes run at a time and take up to 14 GiB together (guided-step). The last
column is the CPU time that other programs used meanwhile: repeat disturbed measurements.

--peer needs a Python with the packages of xtask/fixture/requirements.txt; for data one with torch, pillow, and
decord or av; for llama.cpp one with llama-cpp-python, gguf, numpy and safetensors. They are not installed for you.")]
pub struct Arguments {
    /// Work to run [default: all except llm-load]
    #[arg(long, value_enum, value_name = "WORK")]
    only: Vec<Work>,
    /// Runs of each work, after one that is not counted; at least 16 for a token [default: 1, 3 with
    /// --peer]
    #[arg(long, value_name = "COUNT")]
    repeat: Option<usize>,
    /// auto, cpu, wgpu, vulkan or cuda, with `:index` for a certain one
    #[arg(long, default_value = "auto")]
    device: String,
    /// CPU threads of both sides [default: as many as the machine has]
    #[arg(long, value_name = "COUNT")]
    threads: Option<usize>,
    /// Element type, f32 by default (always for training steps); the CPU stores matrices in it and computes
    /// in f32, or in bf16 if it can; q8 and q4 are only for the language model (with --model, the default is q8)
    #[arg(long, value_enum)]
    dtype: Option<language::Dtype>,
    /// Also run a peer, in alternation [default peer: pytorch]
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "pytorch")]
    peer: Option<Peer>,
    /// Compare the results of both on the same small weights, without measuring time
    #[arg(long, requires = "peer")]
    check: bool,
    /// Python that has PyTorch [default: $DIVOT_PYTHON or python3]
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// PyTorch's attention: as the released system computes it, or fused
    #[arg(long, value_enum, default_value = "eager", value_name = "KIND")]
    peer_attention: Attention,
    /// Compile PyTorch's networks with torch.compile; of the language model, only the layers of a training step
    #[arg(long)]
    peer_compile: bool,
    /// Folder that `convert-weights` wrote, for `llm`; without it, a random decoder of 0.2 B is timed
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Text for the perplexity of `--model`
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Keep only the inputs of blocks in training steps, and compute each block again in the backward pass
    #[arg(long)]
    checkpointing: bool,
    /// Show the time of each kernel (on a GPU after that of the warm-up)
    #[arg(long, conflicts_with = "peer")]
    profile: bool,
    /// Serve the one work of --only to the process that started this one
    #[arg(long, hide = true)]
    serve: bool,
    /// What the work `data` serves: a kind, a size and a folder
    #[arg(long, hide = true, num_args = 3)]
    data: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Peer {
    Pytorch,
    /// Only for llm-prompt and llm-token
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Attention {
    /// Product, softmax, product
    Eager,
    /// scaled_dot_product_attention
    Fused,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Work {
    /// Five frames of 256x256 to 64 tokens
    Tokenizer,
    /// One forward of 1x4x16x32x32 with 125 context tokens
    Unet,
    /// 16 frames of 256x256 to latents
    VaeEncode,
    /// Latents to 16 frames of 256x256
    VaeDecode,
    /// One step of DDIM with guidance: both branches, 1x4x16x32x32
    GuidedStep,
    /// A prompt of 512 tokens through a language model of 1.1 B
    LlmPrompt,
    /// A token after that prompt
    LlmToken,
    /// A training step of a UNet of 3 M: 8x4x16x8x8
    TrainSmall,
    /// A training step of tokenizer and UNet of 149 M together: 1x4x16x16x16
    TrainMid,
    /// A step of the recipe stage1 at small size: 8 clips of 64x64
    TrainStage1,
    /// Two steps of the recipe pretrain with LoRA and a decoder of 0.1 B: 8 rows each
    TrainLlm,
    /// The language model: a prompt of 256 tokens, then text token by token
    Llm,
    /// The work llm with a language model of 7 B with random weights, which is written to a temporary folder
    /// first: how long it takes to load (4 bits by default)
    LlmLoad,
    /// A token of the language model at position 1,400 compared to one at 200
    LlmCache,
    /// Perplexity of --text under the language model of --model; lower is better
    Perplexity,
    /// Clips read from videos and archives by the loader of training samples
    Data,
    /// Resident memory of that loader over 10,000 samples
    DataMemory,
}

impl Work {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Returns whether the work prints its own report instead of being timed by the parent.
    fn reports(self) -> bool {
        matches!(
            self,
            Self::Llm
                | Self::LlmLoad
                | Self::LlmCache
                | Self::Perplexity
                | Self::Data
                | Self::DataMemory
        )
    }

    /// Returns whether the work has a language model of which there is a peer.
    fn is_language(self) -> bool {
        matches!(self, Self::LlmPrompt | Self::LlmToken)
    }

    fn trains(self) -> bool {
        matches!(
            self,
            Self::TrainSmall | Self::TrainMid | Self::TrainStage1 | Self::TrainLlm
        )
    }
}

/// Runs the requested works.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.serve {
        return serve(arguments);
    }
    ensure!(
        arguments.repeat != Some(0),
        "--repeat 0 measures nothing; use at least 1"
    );
    ensure!(
        arguments.threads != Some(0),
        "--threads 0 computes nothing; use at least 1"
    );
    if arguments.check {
        return match arguments.peer {
            Some(Peer::LlamaCpp) => language::check(arguments),
            _ => check(arguments),
        };
    }
    let everything = Work::value_variants();
    let wanted = |work: &&Work| match &arguments.only[..] {
        [] if arguments.peer == Some(Peer::LlamaCpp) => work.is_language(),
        [] => true,
        only => only.contains(work),
    };
    let (reports, timed): (Vec<Work>, Vec<Work>) = everything
        .iter()
        .filter(wanted)
        .partition(|work| work.reports());
    let alone = match arguments.profile {
        true => [timed, reports].concat(),
        false => {
            if !timed.is_empty() {
                time(&timed, arguments)?;
            }
            reports
        }
    };
    for work in alone {
        match work {
            Work::Data => {
                ensure!(
                    arguments.peer != Some(Peer::LlamaCpp),
                    "data is not for llama.cpp; use --peer pytorch"
                );
                data::compare(arguments)?;
                continue;
            }
            // Only if it is asked for: it writes 4 or 7 GiB.
            Work::LlmLoad if arguments.only.is_empty() => continue,
            Work::LlmLoad => {
                language::load_from_disk(arguments)?;
                continue;
            }
            _ => {}
        }
        // Also in a separate process, for its peak memory.
        let status = ourselves(work, arguments)?.status()?;
        ensure!(status.success(), "{} failed", work.name());
    }
    Ok(())
}

/// Runs one work in the child process.
fn serve(arguments: &Arguments) -> Result<()> {
    let [work] = arguments.only[..] else {
        bail!("--serve takes one work")
    };
    let profiles_gpus = arguments.profile && divot::device::profile_kernels();
    let device = || divot::device::select(&arguments.device);
    match work {
        Work::Llm | Work::LlmLoad => language::tokens(&work.name(), arguments, &device()?),
        Work::LlmCache => language::cache(&work.name(), &device()?),
        Work::Perplexity => language::perplexity(&work.name(), arguments, &device()?),
        Work::Data => data::serve(arguments),
        Work::DataMemory => data::memory(&work.name(), arguments.threads()),
        work => {
            let serve = |device: burn::tensor::Device| {
                let device = match (work.trains(), arguments.checkpointing) {
                    (true, true) => device.autodiff().gradient_checkpointing(),
                    (true, false) => device.autodiff(),
                    (false, _) => device,
                };
                match arguments.profile {
                    true if divot::device::is_cpu(&device) => {
                        works::profile(work, &device, arguments.dtype(work))
                    }
                    true => {
                        ensure!(
                            profiles_gpus,
                            "this build cannot profile a GPU; build with the feature `tuned`"
                        );
                        works::profile_gpu(work, &device, arguments.dtype(work))
                    }
                    false => works::serve(work, &device, arguments.dtype(work)),
                }
            };
            if arguments.profile {
                return serve(device()?);
            }
            // The parent prints this error.
            if let Err(error) = device().map_err(Into::into).and_then(serve) {
                let error = divot::one_line(error.as_ref());
                println!("{}", serde_json::json!({"error": error}));
            }
            Ok(())
        }
    }
}

/// Times each work and prints a table.
fn time(works: &[Work], arguments: &Arguments) -> Result<()> {
    let repeat = arguments
        .repeat
        .unwrap_or(if arguments.peer.is_some() { 3 } else { 1 });
    let mut told = false;
    for &work in works {
        let name = work.name();
        let mut sides = vec![Side::start(
            "ours",
            ourselves(work, arguments)?,
            "build it again",
        )?];
        if let Some(peer) = arguments.peer {
            sides.push(start_peer(peer, work, arguments)?);
        }
        if !told {
            told = true;
            println!(
                "Ours: {}{}. {} threads each, in {}; {repeat} of each, in turns: least / **median** / most.\n",
                sides[0].device,
                match (sides.get(1), arguments.peer) {
                    (Some(theirs), Some(Peer::Pytorch)) => format!(
                        "; theirs: {}, {} attention{}",
                        theirs.device,
                        arguments.attention(),
                        if arguments.peer_compile {
                            ", compiled"
                        } else {
                            ""
                        }
                    ),
                    (Some(theirs), _) => format!("; theirs: {}", theirs.device),
                    _ => String::new(),
                },
                arguments.threads(),
                arguments.dtype(work).name(),
            );
            println!(
                "| work | ours | theirs | ours / theirs | peak, ours | peak, theirs | others took |"
            );
            println!("| --- | --- | --- | --- | --- | --- | --- |");
        }
        let count = match work {
            Work::LlmToken => repeat.max(16),
            _ => repeat,
        };
        let measured = take_turns(&mut sides, count).context(name.clone())?;
        let note = match arguments.dtype(work) == arguments.dtype(works[0]) {
            true => String::new(),
            false => format!(" ({})", arguments.dtype(work).name()),
        };
        let ours = &measured[0];
        let typical = measured.iter().map(Measured::median).fold(0.0, f64::max);
        let mut columns = vec![ours.times(typical)];
        match measured.get(1) {
            Some(theirs) => columns.extend([
                theirs.times(typical),
                format!("**{:.2}**", ours.median() / theirs.median()),
                ours.peak(),
                theirs.peak(),
                format!("{}, {}", ours.others(), theirs.others()),
            ]),
            None => {
                let none = String::new();
                columns.extend([none.clone(), none.clone(), ours.peak(), none, ours.others()]);
            }
        }
        println!("| {name}{note} | {} |", columns.join(" | "));
    }
    println!();
    Ok(())
}

/// Returns the command that runs one work with this program.
fn ourselves(work: Work, arguments: &Arguments) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["bench", "--serve", "--only", &work.name()])
        .args(["--device", &arguments.device])
        .args(["--threads", &arguments.threads().to_string()])
        .env("RAYON_NUM_THREADS", arguments.threads().to_string());
    if let Some(dtype) = arguments.dtype.and_then(|dtype| dtype.to_possible_value()) {
        command.args(["--dtype", dtype.get_name()]);
    }
    for (option, on) in [
        ("--checkpointing", arguments.checkpointing),
        ("--profile", arguments.profile),
    ] {
        if on {
            command.arg(option);
        }
    }
    for (option, path) in [("--model", &arguments.model), ("--text", &arguments.text)] {
        if let Some(path) = path {
            command.arg(option).arg(path);
        }
    }
    Ok(command)
}

const REMEDY: &str = "install Python with xtask/fixture/requirements.txt, or name one that has them with --python or DIVOT_PYTHON";

fn python(arguments: &Arguments, script: &str) -> Command {
    let python = match (&arguments.python, std::env::var_os("DIVOT_PYTHON")) {
        (Some(path), _) => path.clone(),
        (None, Some(path)) => path.into(),
        (None, None) => "python3".into(),
    };
    let mut command = Command::new(python);
    command.arg(beside(script, script));
    command
}

/// Returns the path of what `gpu/run.sh` packs beside the program, or where it is in the repository, below `xtask`.
fn beside(packed: &str, here: &str) -> PathBuf {
    let packed = std::env::current_exe().map(|program| program.with_file_name(packed));
    match packed {
        Ok(packed) if packed.exists() => packed,
        _ => Path::new(env!("CARGO_MANIFEST_DIR")).join(here),
    }
}

fn start_peer(peer: Peer, work: Work, arguments: &Arguments) -> Result<Side> {
    let dtype = arguments.dtype(work);
    let script = match peer {
        Peer::Pytorch => "peer/peer.py",
        Peer::LlamaCpp => "peer/llama.py",
    };
    let mut command = python(arguments, script);
    command
        .args(["--serve", &work.name(), "--dtype", &dtype.name()])
        .args(["--threads", &arguments.threads().to_string()]);
    let device = peer_device(&arguments.device)?;
    match peer {
        Peer::LlamaCpp => {
            ensure!(
                device == "cpu",
                "llama.cpp is measured on the CPU; use --device cpu"
            );
            ensure!(
                work.is_language(),
                "{} is not for llama.cpp; use --only llm-prompt or --only llm-token",
                work.name()
            );
        }
        Peer::Pytorch => {
            ensure!(
                dtype.float().is_some(),
                "PyTorch has no weights in {}; use --peer llama.cpp",
                dtype.name()
            );
            command
                .args(["--device", &device])
                .args(["--attention", arguments.attention()]);
            if arguments.peer_compile {
                command.arg("--compile");
            }
        }
    }
    Side::start("theirs", command, REMEDY)
}

/// Returns PyTorch's name of the device that our side uses.
fn peer_device(name: &str) -> Result<String> {
    if name.starts_with("cuda") {
        return Ok(name.to_owned());
    }
    match divot::device::is_cpu(&divot::device::select(name)?) {
        true => Ok("cpu".to_owned()),
        false if name == "auto" && cfg!(feature = "cuda") => Ok("cuda".to_owned()),
        false => bail!("PyTorch does not compute on this device; use --device cpu or cuda"),
    }
}

/// Compares PyTorch's networks with ours, at a small size and on the same weights: PyTorch computes a
/// fixture, and `parity` checks it.
fn check(arguments: &Arguments) -> Result<()> {
    let folder = tempfile::tempdir().context("a temporary folder cannot be made")?;
    let run = |mut command: Command, what: &str| -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let status = command
            .status()
            .with_context(|| format!("`{program}` cannot be run; {REMEDY}"))?;
        ensure!(status.success(), "{what}");
        Ok(())
    };
    let mut peer = python(arguments, "peer/peer.py");
    peer.arg("--self-check");
    run(peer, "peer.py disagrees with make_fixture.py")?;
    let mut fixture = python(arguments, "fixture/make_fixture.py");
    fixture
        .args(["--preset", "tiny", "--out"])
        .arg(folder.path())
        .args(["--threads", &arguments.threads().to_string()])
        .stdout(Stdio::null());
    run(fixture, "make_fixture.py made no fixture")?;
    let parity = crate::parity::Arguments {
        fixture: folder.path().to_owned(),
        only: None,
        device: arguments.device.clone(),
        no_kernels: false,
    };
    ensure!(
        crate::parity::run(&parity)?,
        "ours does not compute what PyTorch does"
    );
    Ok(())
}

impl Arguments {
    fn threads(&self) -> usize {
        self.threads
            .or_else(|| std::thread::available_parallelism().ok().map(Into::into))
            .unwrap_or(1)
    }

    /// Returns the element type for a work's networks.
    fn dtype(&self, work: Work) -> language::Dtype {
        let asked = self.dtype.unwrap_or(language::Dtype::F32);
        match (work.trains(), asked.quantization()) {
            (true, _) => language::Dtype::F32,
            (_, Some(_)) if !work.is_language() => language::Dtype::F32,
            _ => asked,
        }
    }

    fn attention(&self) -> &'static str {
        match self.peer_attention {
            Attention::Eager => "eager",
            Attention::Fused => "fused",
        }
    }
}
