//! JSON against the schemas of docs/openapi.json: as much of JSON Schema as that document uses.
//!
//! Contract: a keyword that isn't known here is an error, so nothing passes for not being looked at;
//! fields that the schema doesn't have are errors too, though readers must take them.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::programs::root;

/// The document.
pub struct Document(Value);

impl Document {
    /// Reads docs/openapi.json.
    pub fn read() -> Result<Self> {
        let text = std::fs::read_to_string(root().join("docs/openapi.json"))?;
        Ok(Self(serde_json::from_str(&text)?))
    }

    /// The document itself.
    pub fn json(&self) -> &Value {
        &self.0
    }

    /// Checks the answer of an operation with status `code`.
    pub fn check_answer(&self, path: &str, method: &str, code: &str, answer: &Value) -> Result<()> {
        let responses = &self.0["paths"][path][method]["responses"];
        let response = self.follow(&responses[code])?;
        let schema = &response["content"]["application/json"]["schema"];
        ensure!(schema.is_object(), "{method} {path} has no answer {code} in the document");
        self.check(schema, answer).with_context(|| format!("{method} {path}: {answer}"))
    }

    /// Checks what an operation is sent.
    pub fn check_order(&self, path: &str, method: &str, body: &Value) -> Result<()> {
        let content = &self.0["paths"][path][method]["requestBody"]["content"];
        let schema = &content["application/json"]["schema"];
        ensure!(schema.is_object(), "{method} {path} takes no body by the document");
        self.check(schema, body)
    }

    fn follow<'a>(&'a self, schema: &'a Value) -> Result<&'a Value> {
        let Some(target) = schema["$ref"].as_str() else { return Ok(schema) };
        let pointer = target.strip_prefix('#').context("a reference to elsewhere")?;
        self.0.pointer(pointer).with_context(|| format!("{target} is not in the document"))
    }

    fn check(&self, schema: &Value, value: &Value) -> Result<()> {
        let keywords = schema.as_object().context("a schema is an object")?;
        for (keyword, wanted) in keywords {
            match keyword.as_str() {
                "description" | "title" | "format" => {}
                "$ref" => self.check(self.follow(schema)?, value)?,
                "type" => {
                    let either =
                        wanted.as_array().map_or(std::slice::from_ref(wanted), Vec::as_slice);
                    ensure!(
                        either.iter().any(|one| is_of_type(one, value)),
                        "{value} is no {wanted}"
                    );
                }
                "const" => ensure!(value == wanted, "{value} is not {wanted}"),
                "enum" => {
                    let words = wanted.as_array().context("enum is a list")?;
                    ensure!(words.contains(value), "{value} is none of {wanted}");
                }
                "minimum" => {
                    ensure!(value.is_null() || value.as_f64() >= wanted.as_f64(), "{value}")
                }
                "maximum" => {
                    ensure!(value.is_null() || value.as_f64() <= wanted.as_f64(), "{value}")
                }
                "items" => {
                    for item in value.as_array().into_iter().flatten() {
                        self.check(wanted, item)?;
                    }
                }
                "oneOf" => {
                    let ways = wanted.as_array().context("oneOf is a list")?;
                    let fits = ways.iter().filter(|way| self.check(way, value).is_ok()).count();
                    ensure!(fits == 1, "{value} fits {fits} of the ways in which it may be");
                }
                "properties" => {
                    for (name, field) in value.as_object().into_iter().flatten() {
                        ensure!(wanted[name].is_object(), "{name} is not described");
                        self.check(&wanted[name], field).with_context(|| name.clone())?;
                    }
                }
                "required" => {
                    for name in wanted.as_array().into_iter().flatten().filter_map(Value::as_str) {
                        ensure!(value.get(name).is_some(), "{name} is missing");
                    }
                }
                // With `properties` others are refused anyway.
                "additionalProperties" if keywords.contains_key("properties") => {}
                "additionalProperties" => {
                    for (name, field) in value.as_object().into_iter().flatten() {
                        self.check(wanted, field).with_context(|| name.clone())?;
                    }
                }
                other => bail!("the keyword {other} is not known here"),
            }
        }
        Ok(())
    }
}

fn is_of_type(name: &Value, value: &Value) -> bool {
    match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("null") => value.is_null(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let document = Document(json!({"components": {"schemas": {"A": {"type": "object",
            "properties": {"n": {"type": ["integer", "null"], "minimum": 0}}, "required": ["n"]}}}}));
        let schema = json!({"$ref": "#/components/schemas/A"});
        for good in [json!({"n": 1}), json!({"n": null})] {
            assert!(document.check(&schema, &good).is_ok(), "{good}");
        }
        for bad in
            [json!({}), json!({"n": -1}), json!({"n": "1"}), json!({"n": 1, "m": 1}), json!(1)]
        {
            assert!(document.check(&schema, &bad).is_err(), "{bad}");
        }
        assert!(document.check(&json!({"pattern": "x"}), &json!("x")).is_err(), "unknown keyword");
        assert!(document.check(&json!({"$ref": "#/nowhere"}), &json!(1)).is_err());
    }
}
