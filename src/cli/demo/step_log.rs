//! What happened, step by step.

use serde_json::json;

use crate::cli::Output;
use crate::clock::Clock;
use crate::model::Timestamp;
use crate::model::text::escape_invisible;

/// Prints each step as it is taken, and counts the misses.
pub(super) struct StepLog {
    output: Output,
    clock: Clock,
    began: Timestamp,
    steps: usize,
    misses: usize,
}

/// Width of a step's name, in characters.
const NAME_WIDTH: usize = 62;

impl StepLog {
    pub(super) fn new(output: &Output) -> Self {
        let clock = Clock::system();
        Self {
            output: *output,
            began: clock.now(),
            clock,
            steps: 0,
            misses: 0,
        }
    }

    /// Milliseconds since the demo began.
    pub(super) fn at(&self) -> i64 {
        self.clock.now().since(self.began)
    }

    /// Text between steps, for people only.
    pub(super) fn note(&self, text: &str) {
        if !self.output.is_json() {
            self.output.text(text);
        }
    }

    /// One step: what should have come of it, what did, and why.
    pub(super) fn step(&mut self, step: &str, expected: &str, got: &str, why: &str) {
        let ok = expected == got;
        let at_ms = self.at();
        self.steps += 1;
        self.misses += usize::from(!ok);
        self.output.print(
            || json!({ "step": step, "expected": expected, "got": got, "ok": ok, "why": why, "at_ms": at_ms }),
            || {
                let mark = if ok { "  ok" } else { "MISS" };
                let name = if step.chars().count() > NAME_WIDTH { step.to_owned() } else { format!("{step:NAME_WIDTH$}") };
                let mut line = format!("{:>3}.{:02}  {mark}  {name}  {}", at_ms / 1_000, at_ms % 1_000 / 10, escape_invisible(got));
                if !ok {
                    line.push_str(&format!("   (expected {expected})"));
                }
                if !why.is_empty() {
                    line.push_str(&format!("\n              {}", escape_invisible(why)));
                }
                line
            },
        );
    }

    /// Whether every step came out as it should, with a last line that says so.
    pub(super) fn end(&self) -> bool {
        let all = self.misses == 0;
        self.note(&if all {
            format!("\n{} steps, all as they must be.", self.steps)
        } else {
            format!("\n{} of {} steps MISSED.", self.misses, self.steps)
        });
        all
    }
}
