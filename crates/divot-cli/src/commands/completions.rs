//! `divot completions`

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::Cli;
use crate::output::Output;

/// Print a script that completes commands and options in a shell
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  divot completions bash > ~/.local/share/bash-completion/completions/divot
  divot completions zsh > ~/.zfunc/_divot
  divot completions fish > ~/.config/fish/completions/divot.fish"
)]
pub struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Arguments {
    /// Runs the command.
    pub fn run(&self, output: &mut Output) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "divot", &mut script);
        let script = String::from_utf8_lossy(&script);
        output.set("shell", self.shell.to_string());
        output.set("script", &script);
        output.line(script.trim_end())
    }
}
