//! The program, and the fixture's small random model. Each test file uses a part of it.

#![allow(dead_code)]

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

pub fn divot() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_divot"));
    // The tests must not depend on the caches of the machine.
    for name in [
        "HF_HOME",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "XDG_CACHE_HOME",
        "HF_ENDPOINT",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
    ] {
        command.env_remove(name);
    }
    // Nor on the endpoints and proxies of its owner.
    for name in ["OPENAI_API_KEY", "OPENAI_BASE_URL"] {
        command.env_remove(name);
    }
    command.env("NO_PROXY", "127.0.0.1");
    command
}

/// Returns the model, which the program itself converts once.
pub fn model() -> &'static Path {
    static MODEL: OnceLock<tempfile::TempDir> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixture");
            let folder = tempfile::tempdir().unwrap();
            let output = divot()
                .arg("convert")
                .arg("--from")
                .arg(fixture.join("pretrained"))
                .arg("--config")
                .arg(fixture.join("config.json"))
                .arg("--to")
                .arg(folder.path())
                .output()
                .unwrap();
            let stdout = text(&output.stdout);
            assert!(output.status.success(), "{}", text(&output.stderr));
            for part in ["tokenizer", "detokenizer", "clip", "llm-generation"] {
                assert!(stdout.contains(&format!("{part}: ")), "{stdout}");
            }
            folder
        })
        .path()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
