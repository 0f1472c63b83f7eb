//! Decisions about recommendations: the rules for both agents, and the people whom they ask for together.

use super::*;

/// The decision about what the assistant recommends to the responder.
fn recommended(bundle: &PolicyBundle, action: &Action, approvals: &[&str]) -> String {
    let (assistant, responder) = (agent(bundle, "assistant"), agent(bundle, "responder"));
    summary(&bundle.authorize(&AuthzRequest {
        agent: &assistant,
        action,
        ttl_ms: 60_000,
        approvals: &profiles(approvals),
        evidence_kind: EvidenceKind::JwtSvid,
        evidence_ages: EvidenceAges::ZERO,
        binding: "jkt",
        task_age_ms: 60_000,
        task_depth: 0,
        waited_ms: 0,
        now: Timestamp::from_millis(1_792_656_000_123),
        executor: Some(&responder.id),
        facts: &crate::model::FactValues::new(),
        counts: &crate::model::CountValues::new(),
    }))
}

fn end_session() -> Action {
    action("session.end", "Account::ann", &[])
}

#[test]
fn the_rules_for_the_executor_are_asked_too() {
    let of_responder = "@id(\"responder\") @step_up(\"two-security\") forbid (principal == Agent::\"responder\", action == Action::\"session.end\", resource)
         unless { context.approvals.contains(StepUp::\"two-security\") };";
    let bundle = soc_and(of_responder).expect("bundle");
    let needs = recommended(&bundle, &end_session(), &[]);
    assert!(needs.starts_with("needs two-security 60"), "{needs}");
    let short = recommended(&bundle, &end_session(), &["one-passkey"]);
    assert!(short.starts_with("needs two-security 60"), "{short}");
    let denied = "@id(\"never\") forbid (principal == Agent::\"responder\", action == Action::\"session.end\", resource);";
    let bundle = soc_and(denied).expect("bundle");
    assert_eq!(
        recommended(&bundle, &end_session(), &["two-security"]),
        "FORBIDDEN_BY_RULE [never]"
    );
}

/// The mark asks a passkey, and the executor's rule takes a key or a passkey: one person with a passkey is enough, and one with a key is not.
#[test]
fn one_profile_lifts_what_both_need() {
    let bundle = soc();
    let needs = recommended(&bundle, &disable("ann"), &[]);
    assert!(needs.starts_with("needs one-passkey 60"), "{needs}");
    let by_key = recommended(&bundle, &disable("ann"), &["one-security"]);
    assert!(by_key.starts_with("needs one-passkey 60"), "{by_key}");
    let by_passkey = recommended(&bundle, &disable("ann"), &["one-passkey"]);
    assert!(by_passkey.starts_with("allowed 60"), "{by_passkey}");
}
