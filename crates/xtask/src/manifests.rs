//! How a member's `Cargo.toml` is written: versions in the root's table alone, lints inherited.

use toml::{Table, Value};

use crate::Complaint;

/// What is wrong with a manifest.
pub(crate) fn check(name: &str, text: &str) -> Vec<Complaint> {
    let manifest: Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Complaint::Error(format!("{name}: {error}"))],
    };
    let mut complaints = Vec::new();
    let inherits = |value: Option<&Value>| {
        value.and_then(|value| value.get("workspace")).and_then(Value::as_bool) == Some(true)
    };
    if !inherits(manifest.get("lints")) {
        complaints.push(Complaint::Error(format!("{name}: [lints] workspace = true is missing")));
    }
    let own_name = manifest.get("package").and_then(|package| package.get("name"));
    for (section, dependency, value) in dependencies(&manifest) {
        // A crate's tests may ask for more of its own features.
        let itself = section == "dev-dependencies" && own_name == Some(&dependency.as_str().into());
        if !itself && !inherits(Some(value)) {
            complaints.push(Complaint::Error(format!(
                "{name}: [{section}] {dependency} must say workspace = true; its version belongs \
                 in the root's table"
            )));
        }
    }
    complaints
}

/// All dependencies with the section that they stand in, targets' own included.
fn dependencies(manifest: &Table) -> Vec<(String, &String, &Value)> {
    let mut tables = vec![(String::new(), manifest)];
    if let Some(targets) = manifest.get("target").and_then(Value::as_table) {
        tables.extend(targets.iter().filter_map(|(name, value)| {
            value.as_table().map(|table| (format!("target.{name}."), table))
        }));
    }
    let mut found = Vec::new();
    for (prefix, table) in tables {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let entries = table.get(section).and_then(Value::as_table).into_iter().flatten();
            found.extend(entries.map(|(name, value)| (format!("{prefix}{section}"), name, value)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::check;

    const LINTS: &str = "[lints]\nworkspace = true\n";

    #[test]
    fn versions_belong_to_the_root() {
        let good = format!("{LINTS}[dependencies]\na.workspace = true\nb = {{ workspace = true }}");
        assert_eq!(check("x", &good), []);
        for bad in [
            "[dependencies]\na = \"1\"",
            "[dev-dependencies]\na = { version = \"1\" }",
            "[target.'cfg(unix)'.dependencies]\na = \"1\"",
            "[build-dependencies]\na = { git = \"https://example.org\" }",
        ] {
            assert_eq!(check("x", &format!("{LINTS}{bad}")).len(), 1, "{bad}");
        }
    }

    #[test]
    fn lints_are_inherited() {
        assert_eq!(check("x", "[package]\nname = \"x\"").len(), 1);
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(check("x", "[").len(), 1);
    }
}
