//! Completions for bash, zsh and fish.

use anyhow::Result;
use clap_complete::{Generator, Shell};

use crate::{File, programs};

/// The shells, each with the name that it looks for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// One file for each program and shell.
pub(crate) fn all() -> Result<Vec<File>> {
    let mut files = Vec::new();
    for program in programs::all() {
        let mut command = program.command;
        let name = command.get_name().to_owned();
        for shell in SHELLS {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command, name.clone(), &mut text);
            files.push((shell.file_name(&name), text));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::tests::each_option;

    #[test]
    fn every_option_is_completed_by_every_shell() {
        let files = all().unwrap();
        for program in programs::all() {
            for shell in SHELLS {
                let name = shell.file_name(program.command.get_name());
                let text = &files.iter().find(|(one, _)| *one == name).unwrap().1;
                let text = String::from_utf8_lossy(text);
                for (_, option) in each_option(&program.command) {
                    let wanted = match shell {
                        Shell::Fish => format!("-l {option}"),
                        _ => format!("--{option}"),
                    };
                    assert!(text.contains(&wanted), "{name}: {wanted}");
                }
            }
        }
    }
}
