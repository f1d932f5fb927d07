//! Many pages of metrics made one: families are joined, samples get labels.

/// A family: what its comments say, and its samples.
#[derive(Debug)]
struct Family {
    name: String,
    comments: Vec<String>,
    samples: Vec<String>,
}

/// A page under way.
#[derive(Debug, Default)]
pub(super) struct Page(Vec<Family>);

impl Page {
    /// Adds a page whose samples get `labels` in front of their own. What it says about a family that
    /// is here already is left out.
    pub(super) fn add(&mut self, text: &str, labels: &[(&str, &str)]) {
        let labels: Vec<_> = labels.iter().map(|(name, value)| label(name, value)).collect();
        let labels = labels.join(",");
        let mut at = None;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(name) = commented(line) {
                let index = self.family(name);
                at = Some(index);
                let words = |line: &str| line.split(' ').take(3).collect::<Vec<_>>().join(" ");
                let comments = &mut self.0[index].comments;
                if !comments.iter().any(|comment| words(comment) == words(line)) {
                    comments.push(line.to_owned());
                }
            } else if !line.starts_with('#') {
                let end = line.find(['{', ' ']).unwrap_or(line.len());
                // A histogram's samples have names of their own, behind its comments.
                let index = match at
                    .filter(|&index: &usize| line[..end].starts_with(&self.0[index].name))
                {
                    Some(index) => index,
                    None => self.family(&line[..end]),
                };
                self.0[index].samples.push(labelled(line, end, &labels));
            }
        }
    }

    fn family(&mut self, name: &str) -> usize {
        self.0.iter().position(|family| family.name == name).unwrap_or_else(|| {
            let family =
                Family { name: name.to_owned(), comments: Vec::new(), samples: Vec::new() };
            self.0.push(family);
            self.0.len() - 1
        })
    }

    /// The page as it is sent.
    pub(super) fn render(&self) -> String {
        let lines = self.0.iter().flat_map(|family| family.comments.iter().chain(&family.samples));
        let mut text = String::new();
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// The family that a HELP or TYPE comment is about.
fn commented(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "))?;
    rest.split(' ').next()
}

/// A sample with labels more; its name ends at `end`.
fn labelled(line: &str, end: usize, labels: &str) -> String {
    let (name, rest) = line.split_at(end);
    match rest.strip_prefix('{') {
        _ if labels.is_empty() => line.to_owned(),
        Some(rest) if rest.trim_start().starts_with('}') => format!("{name}{{{labels}{rest}"),
        Some(rest) => format!("{name}{{{labels},{rest}"),
        None => format!("{name}{{{labels}}}{rest}"),
    }
}

/// `name="value"`
pub(super) fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_of_many_pages_are_joined() {
        let one = "# HELP a_total How many.\n# TYPE a_total counter\na_total 1\n\
                   # HELP h Times.\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_sum 3\nh_count 2\n";
        let two = "# HELP a_total How many.\n# TYPE a_total counter\na_total{volume=\"v\"} 5\n\
                   # HELP b Else.\n# TYPE b gauge\nb{} 7\n";
        let mut page = Page::default();
        page.add(one, &[("instance", "x")]);
        page.add(two, &[("instance", "y")]);
        assert_eq!(
            page.render(),
            "# HELP a_total How many.\n# TYPE a_total counter\n\
             a_total{instance=\"x\"} 1\na_total{instance=\"y\",volume=\"v\"} 5\n\
             # HELP h Times.\n# TYPE h histogram\n\
             h_bucket{instance=\"x\",le=\"1\"} 2\nh_sum{instance=\"x\"} 3\nh_count{instance=\"x\"} 2\n\
             # HELP b Else.\n# TYPE b gauge\nb{instance=\"y\"} 7\n"
        );
    }

    #[test]
    fn a_family_that_begins_like_another_is_another() {
        let mut page = Page::default();
        page.add("# TYPE a gauge\na 1\nab 2\n# TYPE ab gauge\nab 3\n", &[]);
        assert!(page.render().contains("# TYPE ab gauge\n"), "{}", page.render());
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(label("a", "x\"\\\n"), r#"a="x\"\\\n""#);
    }
}
