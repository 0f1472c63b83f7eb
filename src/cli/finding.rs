//! Findings of checks: a level, a message, advice, and the findings of their parts.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::Output;
use crate::model::Exit;
use crate::model::text::escape_invisible;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Ok,
    Warn,
    Fail,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The result of one check, with advice and the results of its parts.
#[derive(Debug)]
pub(super) struct Finding {
    level: Level,
    message: String,
    advice: Option<String>,
    children: Vec<Finding>,
    /// A failure with which the broker starts nevertheless.
    allows_start: bool,
}

impl Finding {
    pub(super) fn ok(message: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            message: message.into(),
            advice: None,
            children: Vec::new(),
            allows_start: false,
        }
    }

    pub(super) fn warn(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            advice: Some(advice.into()),
            ..Self::ok(message)
        }
    }

    pub(super) fn fail(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            ..Self::warn(message, advice)
        }
    }

    /// A group with the level of its worst part.
    pub(super) fn group(message: impl Into<String>, children: Vec<Self>) -> Self {
        let worst = children.iter().map(|part| part.level).max();
        Self {
            level: worst.unwrap_or(Level::Ok),
            children,
            ..Self::ok(message)
        }
    }

    /// The finding with every failure in it made a warning.
    pub(super) fn downgraded(self) -> Self {
        Self {
            level: self.level.min(Level::Warn),
            children: self.children.into_iter().map(Self::downgraded).collect(),
            ..self
        }
    }

    /// A failure with which the broker starts nevertheless: what it can still do is worth more than its absence.
    pub(super) fn allowing_start(self) -> Self {
        Self {
            allows_start: true,
            ..self
        }
    }

    /// The failures that keep the broker from starting, each on one line with the group it belongs to and the advice.
    pub(super) fn start_failures(&self) -> Vec<String> {
        self.failures(false)
    }

    /// The failures with which the broker starts nevertheless, in the same form.
    pub(super) fn start_warnings(&self) -> Vec<String> {
        self.failures(true)
    }

    fn failures(&self, allows_start: bool) -> Vec<String> {
        if !self.is_failure() {
            return Vec::new();
        }
        if self.children.is_empty() {
            if self.allows_start != allows_start {
                return Vec::new();
            }
            let advice = self.advice.as_deref();
            let advice = advice.map_or(String::new(), |advice| format!("; {advice}"));
            return vec![format!("{}{advice}", self.message)];
        }
        let failures = self.children.iter();
        let failures = failures.flat_map(|part| part.failures(allows_start));
        failures
            .map(|failure| format!("{}: {failure}", self.message))
            .collect()
    }

    pub(super) const fn is_failure(&self) -> bool {
        matches!(self.level, Level::Fail)
    }

    /// Appends one line for the finding, then its advice and its parts, indented.
    pub(super) fn lines(&self, depth: usize, out: &mut String) {
        let indent = "  ".repeat(depth);
        let mark = format!("[{}]", self.level.as_str());
        out.push_str(&format!(
            "{indent}{mark:<6} {}\n",
            escape_invisible(&self.message)
        ));
        if let Some(advice) = &self.advice {
            out.push_str(&format!("{indent}       -> {}\n", escape_invisible(advice)));
        }
        for part in &self.children {
            part.lines(depth + 1, out);
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut value = json!({ "level": self.level.as_str(), "message": self.message });
        if let Some(members) = value.as_object_mut() {
            if let Some(advice) = &self.advice {
                members.insert("advice".to_owned(), json!(advice));
            }
            if !self.children.is_empty() {
                let children: Vec<_> = self.children.iter().map(Self::to_json).collect();
                members.insert("children".to_owned(), Value::Array(children));
            }
        }
        value
    }
}

/// Prints findings; the exit code is `Failed` if any check failed.
pub(super) fn print_findings(output: &Output, findings: Vec<Finding>) -> ExitCode {
    let failed = findings.iter().any(Finding::is_failure);
    output.print(
        || {
            let json_findings: Vec<_> = findings.iter().map(Finding::to_json).collect();
            json!({ "passed": !failed, "findings": json_findings })
        },
        || {
            let mut text = String::new();
            for finding in &findings {
                finding.lines(0, &mut text);
            }
            text
        },
    );
    let exit = if failed { Exit::Failed } else { Exit::Success };
    ExitCode::from(exit.number())
}
