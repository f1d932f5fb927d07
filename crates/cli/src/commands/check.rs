//! `sealblk key check`: whether a key can be got, and if not, why.

use sealblk_keys::KeyErrorKind;
use serde_json::json;

use crate::args;
use crate::console::Console;
use crate::failure::Failure;
use crate::keyfile;

pub(crate) fn run(args: &args::KeyCheck, console: &mut Console<'_>) -> Result<(), Failure> {
    let key = args.key.to_string();
    // A configuration that can't be used is as good as none.
    let got = keyfile::managers(&args.key, console).map_err(|failure| match failure {
        Failure::Failed(error) => {
            Failure::Key(KeyErrorKind::Unconfigured, format!("key {key}: {error:#}"))
        }
        failure => failure,
    });
    let got = got.and_then(|managers| {
        managers.fetch(&args.key).map_err(|error| Failure::Key(error.kind(), error.to_string()))
    });
    let answer = match &got {
        Ok(fetched) => json!({"key": key, "ok": true, "warning": fetched.warning}),
        Err(Failure::Key(kind, error)) => {
            json!({"key": key, "ok": false, "kind": kind.as_str(), "error": error})
        }
        Err(_) => return got.map(drop),
    };
    if args.json {
        writeln!(console.out, "{answer:#}")?;
        // The exit status must not overtake the answer.
        console.out.flush()?;
    } else if let Ok(fetched) = &got {
        writeln!(console.out, "key {key}: it can be got")?;
        if let Some(warning) = &fetched.warning {
            console.note(&format!("warning: {warning}"))?;
        }
    }
    got.map(drop)
}
