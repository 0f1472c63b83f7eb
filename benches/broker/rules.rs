//! Rules: the time of a decision, and of the check of a bundle, by the number of rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use dipylon::policy::{AuthzDecision, AuthzRequest, BundleFiles, PolicyBundle};
use dipylon_sdk::model::{
    Action, ActionName, AgentId, Audience, CountValues, EvidenceAges, EvidenceKind, FactValues,
    Target, Timestamp,
};

use super::Counts;
use super::closed_loop::{nanos, percentile};
use super::report::{Report, ms};
use super::scale::resident_bytes;
use crate::support::many_rules::{RuleScopes, many_rules};

/// Rules of the bundle that a large one is measured beside.
const FEW: usize = 10;

pub fn run(counts: &Counts, report: &mut Report) {
    report.part(&format!("{} rules", counts.rules));
    let few = decisions(FEW, RuleScopes::Spread, counts);
    report.line("a decision with 10 rules", &summary(&few));
    for (what, scopes) in [
        (
            "each for a group, an action and a target",
            RuleScopes::Spread,
        ),
        ("the same, all of one action", RuleScopes::OneAction),
        (
            "each for a group of targets, with conditions",
            RuleScopes::Conditions,
        ),
    ] {
        let many = decisions(count(scopes, counts), scopes, counts);
        report.line(what, &summary(&many));
        let ratio = percentile(&many, 50) as f64 / percentile(&few, 50) as f64;
        report.ratio("... p50 beside that with 10 rules", ratio, "at most 5");
    }
    for (what, scopes) in [
        ("load and check", RuleScopes::Spread),
        ("load and check, with conditions", RuleScopes::Conditions),
    ] {
        check(what, &many_rules(count(scopes, counts), scopes), report);
    }
}

/// A bundle has room for fewer rules with conditions.
fn count(scopes: RuleScopes, counts: &Counts) -> usize {
    match scopes {
        RuleScopes::Spread | RuleScopes::OneAction => counts.rules,
        RuleScopes::Conditions => counts.rules / 4 * 3,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
fn check(what: &str, files: &BTreeMap<String, String>, report: &mut Report) {
    let files = BundleFiles::new(files.clone()).expect("files");
    let before = resident_bytes();
    let start = Instant::now();
    let loaded = PolicyBundle::load(&files).expect("loads");
    let load = nanos(start.elapsed());
    let held = resident_bytes().saturating_sub(before);
    drop(loaded);
    let start = Instant::now();
    let checked = PolicyBundle::load_checked(&files).unwrap_or_else(|e| panic!("{e}"));
    let took = nanos(start.elapsed());
    assert_eq!(checked.warnings(), [], "every rule is decided");
    let peak = resident_bytes().saturating_sub(before);
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    report.line(
        what,
        &format!(
            "{} of them {} to load   memory {:.0} MiB after a load, {:.0} MiB after the check",
            ms(took),
            ms(load),
            mib(held),
            mib(peak)
        ),
    );
}

/// The time of each of many decisions about requests that rules of the bundle allow.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
fn decisions(rules: usize, scopes: RuleScopes, counts: &Counts) -> Vec<u64> {
    let files = BundleFiles::new(many_rules(rules, scopes)).expect("files");
    let bundle = PolicyBundle::load(&files).unwrap_or_else(|e| panic!("{e}"));
    let approvals = BTreeSet::new();
    let mut times = Vec::new();
    for n in 0..counts.decisions {
        // A stride that is prime to the number of rules visits them all.
        let [agent, action, target] = scopes.request_for(n * 7_919 % (rules - 1));
        let agent = bundle
            .agent(&AgentId::parse(&agent).expect("id"))
            .expect("an agent");
        let action = Action::new(
            ActionName::parse(&action).expect("a name"),
            Audience::parse("https://hosts.example").expect("an audience"),
            Target::parse("Host", &target).expect("a target"),
            BTreeMap::new(),
        );
        let action = action.expect("an action");
        let request = AuthzRequest {
            agent: &agent,
            action: &action,
            ttl_ms: 60_000,
            approvals: &approvals,
            evidence_kind: EvidenceKind::JwtSvid,
            evidence_ages: EvidenceAges {
                issued_ms: 1_000,
                verified_ms: 1_000,
            },
            binding: "jkt",
            task_age_ms: 1_000,
            task_depth: 0,
            waited_ms: 0,
            now: Timestamp::from_secs(1_792_656_000),
            executor: None,
            facts: &FactValues::new(),
            counts: &CountValues::new(),
        };
        let start = Instant::now();
        let decision = bundle.authorize(&request);
        times.push(nanos(start.elapsed()));
        assert!(
            matches!(decision, AuthzDecision::Allowed { .. }),
            "{decision:?}"
        );
    }
    times
}

fn summary(times: &[u64]) -> String {
    format!(
        "p50 {:>9}   p99 {:>9}",
        ms(percentile(times, 50)),
        ms(percentile(times, 99))
    )
}
