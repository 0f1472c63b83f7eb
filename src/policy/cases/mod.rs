//! The tests of a bundle: requests, each with the decision that its authors expect of it.
//!
//! In: `tests.toml` or `tests/*.toml`. A case is one request, a matrix every request of its agents, actions and targets; what they do
//! not state must be denied. They are decided by the bundle itself, as its own rules decide. A bundle whose tests fail is refused
//! wherever one that its check refuses is; a start does not run them.

mod matrix;
mod reading;
mod request_parts;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::problem::BundleProblem;
use super::{AuthzDecision, PolicyBundle};
use crate::model::{
    Action, AgentId, CountValues, EvidenceAges, FactValues, ProfileName, RegisteredAgent, Target,
    Timestamp,
};

pub(super) use reading::read;
pub(super) use run::run;

/// The result of a bundle's tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TestReport {
    /// Cases.
    pub cases: usize,
    /// Matrices.
    pub matrices: usize,
    /// Requests of both.
    pub requests: usize,
    /// The requests whose decision is not the expected one, in the order of files and lines.
    pub failures: Vec<BundleProblem>,
    /// The rules that decide a request as expected, by id: a permit that allows it, a forbid whose remedy it needs or that denies it.
    pub covered: BTreeSet<String>,
}

impl TestReport {
    /// The rules of a bundle that no passing request rests on, by id.
    pub fn uncovered<'b>(&self, bundle: &'b PolicyBundle) -> Vec<&'b super::RuleInfo> {
        let is_uncovered = |rule: &&super::RuleInfo| !self.covered.contains(&rule.id);
        bundle.rules().filter(is_uncovered).collect()
    }

    /// The share of rules that are covered, in percent, rounded down; 100 for a bundle without rules.
    pub fn coverage(&self, bundle: &PolicyBundle) -> usize {
        let all = bundle.rules().count();
        (self.covered.len() * 100).checked_div(all).unwrap_or(100)
    }
}

/// The tests of one bundle, read and resolved.
#[derive(Debug, Default)]
pub(super) struct Tests {
    cases: usize,
    matrices: usize,
    requests: Vec<TestRequest>,
}

/// A request with the decision that is expected of it.
#[derive(Debug)]
struct TestRequest {
    /// The case or matrix, in words.
    name: String,
    file: String,
    line: Option<usize>,
    agent: Arc<RegisteredAgent>,
    /// The agent that would execute what an advisory agent recommends.
    executor: Option<AgentId>,
    /// `None` asks whether the agent may operate.
    action: Option<Action>,
    /// Attributes of the target that are other than in `entities.json`.
    attributes: Option<Arc<ChangedAttributes>>,
    facts: Facts,
    expected: Expected,
}

/// Attributes that a target has in a test.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ChangedAttributes {
    target: Target,
    /// By name, as JSON.
    values: BTreeMap<String, String>,
}

/// What else a request rests on.
#[derive(Debug, Clone)]
struct Facts {
    ttl_ms: i64,
    approvals: BTreeSet<ProfileName>,
    ages: EvidenceAges,
    task_age_ms: i64,
    at: Timestamp,
    /// Named facts that the test says; others are normal.
    named: FactValues,
    waited_ms: i64,
    /// Counts that the test says; others are 0.
    counts: CountValues,
}

/// The decision that a test expects.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    Allowed {
        lifetime_s: Option<u32>,
    },
    Pending {
        profiles: BTreeSet<ProfileName>,
        delay_s: Option<u32>,
        lifetime_s: Option<u32>,
    },
    /// By exactly these rules, if the test says which; by none: no rule allows it.
    Denied {
        rules: Option<BTreeSet<String>>,
    },
}

/// Most requests of a bundle's tests.
pub(super) const REQUESTS_MAX: usize = 20_000;
/// Most targets with other attributes.
const CHANGED_MAX: usize = 64;
/// Most requests times rules: how long the tests take at most.
const RULES_ASKED_MAX: usize = 20_000_000;
