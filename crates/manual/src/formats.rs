//! The pages of file formats are written by hand (dist/man): a test sees to it that they know every
//! field.

/// Fields of the tables in docs/operations.md between two headings: what is in backticks in the first
/// column.
fn documented_fields(text: &str, from: &str, to: &str) -> Vec<String> {
    let section = text.split(from).nth(1).unwrap_or_default().split(to).next().unwrap_or_default();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let names = cells.flat_map(|cell| cell.split(", ").map(str::to_owned).collect::<Vec<_>>());
    names.filter_map(|name| Some(name.strip_prefix('`')?.strip_suffix('`')?.to_owned())).collect()
}

#[test]
fn the_page_of_the_daemons_configuration_has_every_documented_field() {
    let docs = include_str!("../../../docs/operations.md");
    let page = include_str!("../../../dist/man/sealblkd.toml.5").replace("\\-", "-");
    let fields = documented_fields(docs, "## Configuration", "## As a service");
    assert!(fields.iter().any(|field| field == "on_error"), "{fields:?}");
    let missing: Vec<_> =
        fields.into_iter().filter(|field| !page.contains(field.as_str())).collect();
    assert_eq!(missing, Vec::<String>::new(), "not in dist/man/sealblkd.toml.5");
}
