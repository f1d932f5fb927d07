//! What a source file may hold: `unsafe` only where the file says why, no test that is skipped,
//! not too many lines.

use crate::Complaint;

/// Lines of code (neither blank nor comment) after which a file should be split, and must be.
const LINES_WARN: usize = 500;
const LINES_MAX: usize = 800;

/// What is wrong with a source file.
pub(crate) fn check(name: &str, text: &str) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let code = || text.lines().map(str::trim).filter(|line| !line.is_empty() && !is_comment(line));
    let lines = code().count();
    if lines > LINES_MAX {
        complaints.push(Complaint::Error(format!(
            "{name}: {lines} lines of code, at most {LINES_MAX} are allowed: split it"
        )));
    } else if lines > LINES_WARN {
        complaints.push(Complaint::Warning(format!(
            "{name}: {lines} lines of code, over {LINES_WARN}: one idea per file?"
        )));
    }
    // A test module has its parent's leave; the compiler sees to that.
    let is_test = name.ends_with("/tests.rs") || name.contains("/tests/");
    let explained =
        is_test || text.lines().any(|line| line.trim_start().starts_with("// UNSAFETY: "));
    if !explained && let Some(line) = code().find(|line| is_unsafe(line)) {
        complaints.push(Complaint::Error(format!(
            "{name}: `{line}` in a file without an `// UNSAFETY: why` comment"
        )));
    }
    if code().any(|line| line.starts_with(concat!("#[", "ignore"))) {
        complaints.push(Complaint::Error(format!("{name}: an ignored test proves nothing")));
    }
    if !is_test && !text.starts_with("//!") {
        complaints.push(Complaint::Error(format!("{name}: must start with `//!`: what it is")));
    }
    complaints
}

fn is_comment(line: &str) -> bool {
    line.starts_with("//")
}

/// Whether a line opens an unsafe block or item; words in strings and comments behind code don't
/// look like that.
fn is_unsafe(line: &str) -> bool {
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait", "unsafe("]
        .iter()
        .flat_map(|what| line.match_indices(what))
        .map(|(at, _)| &line[..at])
        .any(|before| {
            !before.contains('"') && !before.ends_with(|c: char| c == '_' || c.is_alphanumeric())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_needs_a_reason() {
        let block = "//! x\nfn f() {\n    unsafe { g() }\n}\n";
        assert_eq!(check("x", block).len(), 1);
        assert_eq!(check("x", &format!("{block}// UNSAFETY: g is C\n")), []);
        assert_eq!(check("x", "//! x\nunsafe impl Send for X {}").len(), 1);
        assert_eq!(check("x", "//! x\n// unsafe { }\nlet a = \"unsafe { }\";"), []);
        assert_eq!(check("x", "//! x\n#![expect(unsafe_code)]\nis_unsafe(line)"), []);
    }

    #[test]
    fn a_long_file_is_reported_by_its_code_not_its_comments() {
        let comments = format!("//! x\n{}", "// y\n\n".repeat(1000));
        assert_eq!(check("x", &comments), []);
        let long = format!("//! x\n{}", "a();\n".repeat(LINES_WARN + 1));
        assert!(matches!(check("x", &long)[..], [Complaint::Warning(_)]));
        let longer = format!("//! x\n{}", "a();\n".repeat(LINES_MAX + 1));
        assert!(matches!(check("x", &longer)[..], [Complaint::Error(_)]));
    }

    #[test]
    fn no_test_is_skipped() {
        let text = format!("//! x\n{}{}", "#[", "ignore]\nfn f() {}");
        assert_eq!(check("x", &text).len(), 1);
    }

    #[test]
    fn every_file_says_what_it_is() {
        assert_eq!(check("x", "fn f() {}").len(), 1);
        assert_eq!(check("x/tests.rs", "fn f() {}"), []);
    }
}
