//! `completions` and `man`: what other programs know of the commands, made from the same
//! description as `--help`.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use clap::CommandFactory;
use clap_complete::Shell;

use super::{args::Args, exit::Failure, output};

/// The name by which people call the program.
const NAME: &str = "handover";

/// `handover completions`
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), NAME, &mut script);
    print(&script)
}

/// `handover man`
pub(super) fn man(folder: Option<&Path>) -> Result<(), Failure> {
    let command = Args::command();
    let Some(folder) = folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut page)
            .map_err(|error| Failure::new(error.to_string()))?;
        return print(&page);
    };
    let written =
        fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(command, folder));
    written.map_err(|error| {
        Failure::new(format!(
            "the manual pages cannot be written to {}: {error}",
            folder.display()
        ))
    })?;
    output::line(&format!(
        "{NAME}(1) and a page for each command are in {}",
        folder.display()
    ));
    Ok(())
}

/// Writes a text whose reader may be gone.
fn print(text: &[u8]) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("it cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}
