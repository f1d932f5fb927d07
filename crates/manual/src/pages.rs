//! Manual pages: one for each program, and one for each of its subcommands.

use anyhow::Result;
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::File;
use crate::programs::{self, Program};

/// All pages of all programs.
pub(crate) fn all() -> Result<Vec<File>> {
    let mut files = Vec::new();
    for program in programs::all() {
        add(&program, &program.command, &mut files)?;
    }
    Ok(files)
}

fn add(program: &Program, command: &Command, files: &mut Vec<File>) -> Result<()> {
    files.push((format!("{}.{}", name(command), program.section), page(program, command)?));
    for subcommand in subcommands(command) {
        add(program, subcommand, files)?;
    }
    Ok(())
}

fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|one| !one.is_hide_set())
}

/// `sealblk-rotate-start`.
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(program: &Program, command: &Command) -> Result<Vec<u8>> {
    let source = format!("sealblk {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone())
        .title(name(command))
        .section(program.section)
        .date("")
        .source(source)
        .manual("sealblk");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    synopsis(command, &mut text)?;
    man.render_description_section(&mut text)?;
    if command.get_arguments().any(|one| !one.is_hide_set()) {
        man.render_options_section(&mut text)?;
    }
    if subcommands(command).next().is_some() {
        man.render_subcommands_section(&mut text)?;
    }
    notes(command, &mut text)?;
    files_section(program, command, &mut text)?;
    see_also(program, command, &mut text)?;
    Ok(text)
}

/// The usage as `--help` has it: it says which options belong together.
fn synopsis(command: &Command, text: &mut Vec<u8>) -> Result<()> {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").lines().map(str::trim).collect::<Vec<_>>();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]).control("nf", []);
    roff.text([roman(usage.join("\n"))]);
    roff.control("fi", []);
    roff.to_writer(text)?;
    Ok(())
}

/// What `--help` says at its end, line by line as it is.
fn notes(command: &Command, text: &mut Vec<u8>) -> Result<()> {
    if let Some(after) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        let mut roff = Roff::new();
        roff.control("SH", ["NOTES"]).control("nf", []);
        roff.text([roman(after.to_string())]);
        roff.control("fi", []);
        roff.to_writer(text)?;
    }
    Ok(())
}

fn files_section(program: &Program, command: &Command, text: &mut Vec<u8>) -> Result<()> {
    if program.files.is_empty() || name(command) != name(&program.command) {
        return Ok(());
    }
    let mut roff = Roff::new();
    roff.control("SH", ["FILES"]);
    for (path, what) in program.files {
        roff.control("TP", []).text([bold(*path)]).text([roman(*what)]);
    }
    roff.to_writer(text)?;
    Ok(())
}

fn see_also(program: &Program, command: &Command, text: &mut Vec<u8>) -> Result<()> {
    let root = name(&program.command);
    let own = (name(command) != root).then(|| format!("{root}({})", program.section));
    let others = program.see_also.iter().map(|&one| one.to_owned());
    let list: Vec<_> = own.into_iter().chain(others).collect();
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]).text([roman(list.join(", "))]);
    roff.to_writer(text)?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Long options of a command and of all below it that are not hidden, with the command's name.
    pub(crate) fn each_option(command: &Command) -> Vec<(String, String)> {
        let own = command.get_arguments().filter(|one| !one.is_hide_set());
        let own =
            own.filter_map(|one| Some((name(command).to_owned(), one.get_long()?.to_owned())));
        let below = subcommands(command).flat_map(each_option);
        own.chain(below).collect()
    }

    #[test]
    fn every_option_is_in_its_page() {
        let files = all().unwrap();
        for program in programs::all() {
            let options = each_option(&program.command);
            assert!(
                options.iter().any(|(_, option)| option == "volume"),
                "found nothing to look for"
            );
            for (command, option) in options {
                let file = format!("{command}.{}", program.section);
                let text = &files.iter().find(|(one, _)| *one == file).unwrap().1;
                let text = String::from_utf8_lossy(text).replace("\\-", "-");
                let options = text.split(".SH OPTIONS").nth(1).unwrap();
                assert!(options.contains(&format!("--{option}")), "{file}: --{option}");
            }
        }
    }

    #[test]
    fn a_page_is_the_same_each_time_and_has_no_date() {
        let (first, second) = (all().unwrap(), all().unwrap());
        assert_eq!(first, second);
        for (file, text) in first {
            let text = String::from_utf8_lossy(&text).into_owned();
            let title = text.lines().find(|line| line.starts_with(".TH")).unwrap();
            let version = format!("\"sealblk {}\"", env!("CARGO_PKG_VERSION"));
            assert!(title.contains("\"\"") || title.contains(&version), "{file}: {title}");
        }
    }

    #[test]
    fn what_help_says_at_its_end_is_in_the_page() {
        let files = all().unwrap();
        let text = &files.iter().find(|(file, _)| file == "sealblk.1").unwrap().1;
        let text = String::from_utf8_lossy(text);
        assert!(text.contains(".SH NOTES") && text.contains("Exit status"), "{text}");
    }
}
