//! The log of the demo's steps: expected and actual outcomes.

use serde_json::json;

use crate::cli::Output;
use crate::clock::Clock;
use crate::model::Timestamp;
use crate::model::text::escape_invisible;

/// Prints each step as it completes, and counts the failures.
pub(super) struct StepLog {
    output: Output,
    clock: Clock,
    started_at: Timestamp,
    steps: usize,
    failures: usize,
}

/// Width of a step's name, in characters.
const NAME_WIDTH: usize = 62;

impl StepLog {
    pub(super) fn new(output: &Output) -> Self {
        let clock = Clock::system();
        Self {
            output: output.clone(),
            started_at: clock.now(),
            clock,
            steps: 0,
            failures: 0,
        }
    }

    /// Milliseconds since the start of the demo.
    pub(super) fn at(&self) -> i64 {
        self.clock.now().since(self.started_at)
    }

    /// Prints text between steps; nothing with --json.
    pub(super) fn note(&self, text: &str) {
        if !self.output.is_json() {
            self.output.text(text);
        }
    }

    /// Prints one step: the expected outcome, the actual one, and details.
    pub(super) fn step(&mut self, step: &str, expected: &str, got: &str, why: &str) {
        let ok = expected == got;
        let at_ms = self.at();
        self.steps += 1;
        self.failures += usize::from(!ok);
        self.output.print(
            || json!({ "step": step, "expected": expected, "got": got, "ok": ok, "why": why, "at_ms": at_ms }),
            || {
                let mark = if ok { "  ok" } else { "FAIL" };
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

    /// Prints the summary; true if every step had the expected outcome.
    pub(super) fn end(&self) -> bool {
        let passed = self.failures == 0;
        self.note(&if passed {
            format!("\n{} steps, all passed.", self.steps)
        } else {
            format!("\n{} of {} steps failed.", self.failures, self.steps)
        });
        passed
    }
}
