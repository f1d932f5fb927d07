//! Following a rotation to its end.
//!
//! Contract: on a terminal one line is drawn over and over; elsewhere there is a line for each change
//! of state, of a whole per cent, or of what is wrong. Ends with the rotation. A daemon that doesn't
//! answer is waited for: it may be in the middle of a restart.

use std::time::Duration;

use anyhow::anyhow;
use sealblk_api::{Rotation, RotationState};
use sealblk_block::in_one_line;

use crate::console::Console;
use crate::failure::Failure;
use crate::http::AskError;
use crate::progress;

/// From one look to the next.
const INTERVAL: Duration = Duration::from_millis(500);

/// Looks in a row without an answer, after which nobody is expected any more: two minutes.
const PATIENCE: u32 = 240;

/// Where a rotation is told of.
pub(super) trait Source {
    fn rotation(&mut self) -> Result<Rotation, AskError>;

    /// Lets time pass.
    fn wait(&mut self, time: Duration);
}

/// Follows the rotation of volume `name`.
///
/// # Errors
/// It failed, there is none, or nobody tells of it any more.
pub(super) fn watch(
    name: &str,
    source: &mut dyn Source,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let mut display = Display::new(json);
    let mut last: Option<Rotation> = None;
    let mut unanswered = 0;
    loop {
        match source.rotation() {
            Ok(rotation) => {
                if unanswered > 0 {
                    display.say("the daemon answers again", console)?;
                    unanswered = 0;
                }
                if let Some(verdict) = verdict(name, &rotation, last.as_ref()) {
                    if rotation.state != RotationState::None {
                        display.show(&rotation, console)?;
                    }
                    display.end(console)?;
                    return match verdict {
                        Ok(Some(remark)) => console.note(&remark),
                        Ok(None) => Ok(()),
                        Err(error) => Err(error.into()),
                    };
                }
                display.show(&rotation, console)?;
                last = Some(rotation);
            }
            // Nobody was there from the beginning: most likely it is the wrong path.
            Err(AskError::Unreachable(why)) if last.is_some() && unanswered < PATIENCE => {
                if unanswered == 0 {
                    let why = in_one_line(why.as_ref());
                    display.say(&format!("the daemon doesn't answer ({why}); waiting"), console)?;
                }
                unanswered += 1;
            }
            Err(error) => {
                display.end(console)?;
                return Err(error.into());
            }
        }
        source.wait(INTERVAL);
    }
}

/// How it ended, if it did; with a remark. `last` is what was told before.
fn verdict(
    name: &str,
    rotation: &Rotation,
    last: Option<&Rotation>,
) -> Option<anyhow::Result<Option<String>>> {
    match rotation.state {
        RotationState::Completed => Some(Ok(None)),
        RotationState::Failed => {
            let why = rotation.trouble.as_deref().unwrap_or("the daemon doesn't say why");
            Some(Err(anyhow!("the rotation of {name} failed: {why}")))
        }
        // One that has moved data can't be taken back, only ended.
        RotationState::None if last.is_some_and(|last| last.done_bytes > 0) => Some(Ok(Some(
            "the daemon was restarted, and its volume has no rotation any more: it is completed"
                .into(),
        ))),
        RotationState::None => Some(Err(anyhow!("{name} has no rotation"))),
        _ => None,
    }
}

/// What was shown, so that only changes are.
#[derive(Debug, Default)]
pub(super) struct Display {
    json: bool,
    /// A line was drawn and not ended.
    open: bool,
    identity: Option<String>,
    last: Option<Rotation>,
}

impl Display {
    /// Lines for a person, or an object for each change.
    pub(super) fn new(json: bool) -> Self {
        Self { json, ..Self::default() }
    }

    /// Shows how far it is, if that is news.
    pub(super) fn show(
        &mut self,
        rotation: &Rotation,
        console: &mut Console<'_>,
    ) -> Result<(), Failure> {
        let news = self.last.as_ref().is_none_or(|last| {
            last.state != rotation.state
                || last.trouble != rotation.trouble
                || progress::thousandths(last) / 10 != progress::thousandths(rotation) / 10
        });
        if self.json {
            if news {
                writeln!(console.out, "{}", serde_json::to_string(rotation)?)?;
            }
        } else {
            let identity = progress::identity(rotation);
            if self.identity.as_ref() != Some(&identity) {
                self.end(console)?;
                console.out.write_all(identity.as_bytes())?;
                self.identity = Some(identity);
            }
            let old_trouble = self.last.as_ref().and_then(|last| last.trouble.as_ref());
            if let Some(trouble) = &rotation.trouble
                && console.redraws
                && old_trouble != Some(trouble)
            {
                // The line that is drawn over has no room for it.
                self.say(trouble, console)?;
            }
            if console.redraws {
                write!(console.out, "\r{}\x1b[K", progress::bar_line(rotation))?;
                self.open = true;
            } else if news {
                writeln!(console.out, "{}", progress::phrase(rotation))?;
            }
        }
        console.out.flush()?;
        // What was not shown is still news when more has come together.
        if news {
            self.last = Some(rotation.clone());
        }
        Ok(())
    }

    /// Says something beside it.
    pub(super) fn say(&mut self, text: &str, console: &mut Console<'_>) -> Result<(), Failure> {
        self.end(console)?;
        console.note(text)
    }

    /// Nothing more is drawn on this line.
    pub(super) fn end(&mut self, console: &mut Console<'_>) -> Result<(), Failure> {
        if self.open {
            writeln!(console.out)?;
            console.out.flush()?;
            self.open = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Answers from a list; after its end nobody answers.
    struct Script {
        answers: VecDeque<Result<Rotation, AskError>>,
        waits: u32,
    }

    impl Source for Script {
        fn rotation(&mut self) -> Result<Rotation, AskError> {
            self.answers.pop_front().unwrap_or_else(gone)
        }

        fn wait(&mut self, _time: Duration) {
            self.waits += 1;
        }
    }

    fn gone() -> Result<Rotation, AskError> {
        Err(AskError::Unreachable(anyhow!("nobody listens")))
    }

    fn at(state: RotationState, done_bytes: u64) -> Result<Rotation, AskError> {
        Ok(Rotation {
            state,
            done_bytes,
            total_bytes: 1000,
            rate_bytes: 10,
            old_volume_key: "aa".into(),
            new_volume_key: "bb".into(),
            old_secret: "file:/k".into(),
            new_secret: "file:/k".into(),
            ..Rotation::default()
        })
    }

    struct Seen {
        result: Result<(), Failure>,
        out: String,
        err: String,
        waits: u32,
    }

    fn follow(answers: Vec<Result<Rotation, AskError>>, json: bool, redraws: bool) -> Seen {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut input = &b""[..];
        let mut console = Console {
            out: &mut out,
            err: &mut err,
            input: &mut input,
            interactive: false,
            redraws,
            key_managers: None,
        };
        let mut script = Script { answers: answers.into(), waits: 0 };
        let result = watch("vda", &mut script, json, &mut console);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Seen { result, out: text(out), err: text(err), waits: script.waits }
    }

    use RotationState::{Completed, Failed, Paused, Running};

    #[test]
    fn a_log_gets_a_line_for_each_change() {
        let answers = vec![
            at(Running, 100),
            at(Running, 105),
            at(Running, 109),
            at(Running, 110),
            at(Paused, 110),
            at(Completed, 1000),
        ];
        let seen = follow(answers, false, false);
        seen.result.unwrap();
        let expected = "\
\x20 volume key  aa -> bb
  secret      file:/k, stays
running, 10.0 %, 100 B of 1000 B, 10 B/s
running, 11.0 %, 110 B of 1000 B, 10 B/s
paused, 11.0 %, 110 B of 1000 B
completed, 100.0 %, 1000 B of 1000 B
";
        assert_eq!(seen.out, expected);
        assert_eq!((seen.err.as_str(), seen.waits), ("", 5));
    }

    #[test]
    fn a_terminal_gets_one_line_that_is_drawn_over() {
        let seen =
            follow(vec![at(Running, 500), at(Running, 501), at(Completed, 1000)], false, true);
        seen.result.unwrap();
        let (head, drawn) = seen.out.split_once('\r').unwrap();
        assert_eq!(head.lines().count(), 2, "{head}");
        let lines: Vec<_> = drawn.split('\r').collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("running   [###") && lines[0].ends_with("\x1b[K"));
        assert!(lines[1].contains("50.1 %"), "{lines:?}");
        assert!(lines[2].starts_with("completed [###") && lines[2].ends_with("\x1b[K\n"));
    }

    #[test]
    fn json_is_an_object_for_each_change() {
        let seen = follow(vec![at(Running, 0), at(Running, 1), at(Completed, 1000)], true, true);
        seen.result.unwrap();
        let parse = |line| serde_json::from_str::<Rotation>(line).unwrap().state;
        assert_eq!(seen.out.lines().map(parse).collect::<Vec<_>>(), [Running, Completed]);
    }

    #[test]
    fn a_failure_says_why() {
        let mut failed = at(Failed, 300);
        failed.as_mut().unwrap().trouble = Some("disk on fire".into());
        let seen = follow(vec![at(Running, 200), failed], false, false);
        let message = seen.result.unwrap_err().message();
        assert!(message.contains("vda failed: disk on fire"), "{message}");
        assert!(seen.out.ends_with("failed, 30.0 %, 300 B of 1000 B (disk on fire)\n"));
    }

    #[test]
    fn a_restart_of_the_daemon_is_waited_for() {
        let answers = vec![at(Running, 100), gone(), gone(), at(Running, 200), at(Completed, 1000)];
        let seen = follow(answers, false, false);
        seen.result.unwrap();
        assert_eq!(seen.err.matches("doesn't answer (nobody listens); waiting").count(), 1);
        assert_eq!(seen.err.matches("answers again").count(), 1);
        assert!(seen.out.contains("running, 20.0 %"), "{}", seen.out);
    }

    #[test]
    fn nobody_is_waited_for_forever_and_nobody_who_never_was_there() {
        let seen = follow(vec![at(Running, 100)], false, false);
        assert!(seen.result.is_err());
        assert_eq!(seen.waits, PATIENCE + 1);
        let seen = follow(vec![], false, false);
        assert!(seen.result.is_err());
        assert_eq!(seen.waits, 0);
        let refused = Err(AskError::Refused(anyhow!("no volume")));
        let seen = follow(vec![at(Running, 100), refused], false, false);
        assert!(seen.result.unwrap_err().message().contains("no volume"));
    }

    #[test]
    fn one_that_is_gone_after_it_moved_data_is_completed() {
        let none = || at(RotationState::None, 0);
        let seen = follow(vec![at(Running, 900), gone(), none()], false, false);
        seen.result.unwrap();
        assert!(seen.err.contains("it is completed"), "{}", seen.err);
        for answers in [vec![none()], vec![at(RotationState::Scheduled, 0), none()]] {
            let seen = follow(answers, false, false);
            assert!(seen.result.unwrap_err().message().contains("no rotation"));
        }
    }
}
