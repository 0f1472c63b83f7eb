//! Decisions of gate 2: ceilings, remedies, evaluation errors and approvals.

use proptest::prelude::*;

use super::*;

/// The nearest permit is that of the question which no rule allowed: shortened, with the approvals assumed.
#[test]
fn nearest_permits_are_asked_as_the_last_evaluation_was() {
    let bundle = soc_and(
        r#"
@id("nearly")
permit (principal in AgentGroup::"soc", action == Action::"account.disable", resource)
when {
  context.approvals.contains(StepUp::"one-security") && context.ttl <= duration("10m") &&
  resource.environment == Environment::"prod"
};
"#,
    );
    let bundle = bundle.expect("loads");
    let (agent, action, none) = (agent(&bundle, "triage"), disable("bob"), profiles(&[]));
    let question = AuthzRequest {
        agent: &agent,
        action: &action,
        ttl_ms: 900_000,
        approvals: &none,
        evidence_kind: crate::model::EvidenceKind::JwtSvid,
        evidence_ages: crate::model::EvidenceAges::ZERO,
        binding: "jkt",
        task_age_ms: 0,
        task_depth: 0,
        waited_ms: 0,
        now: crate::model::Timestamp::from_secs(1_800_000_000),
        executor: None,
        facts: &crate::model::FactValues::new(),
        counts: &crate::model::CountValues::new(),
    };
    assert_eq!(summary(&bundle.authorize(&question)), "NO_RULE_ALLOWS []");
    let nearest = bundle.nearest_permit(&question).expect("a permit");
    assert_eq!(&*nearest.rule.id, "nearly");
    let clauses: Vec<&str> = nearest.misses.iter().map(|miss| &*miss.clause).collect();
    assert_eq!(clauses, ["resource.environment == Environment::\"prod\""]);
}

#[test]
fn example_readme_table() {
    let bundle = soc();
    assert_eq!(
        summary(&authorize(&bundle, &read(), 900, &[])),
        "allowed 900 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &note(), 900, &[])),
        "allowed 600 [soc-acts-at-home writes-are-short]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &note(), 600, &[])),
        "allowed 600 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &note(), 1, &[])),
        "allowed 1 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &disable("ann"), 300, &[])),
        "needs one-security 300 [destructive-needs-approval soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &disable("ann"), 900, &[])),
        "needs one-security 600 [destructive-needs-approval soc-acts-at-home writes-are-short]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &disable("ann"), 300, &["one-security"])),
        "allowed 300 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &isolate("web-1"), 300, &[])),
        "needs two-security 300 [isolating-production-needs-two soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(
            &bundle,
            &isolate("web-1"),
            300,
            &["one-security"]
        )),
        "needs two-security 300 [isolating-production-needs-two soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(
            &bundle,
            &isolate("web-1"),
            300,
            &["two-security"]
        )),
        "allowed 300 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &disable("break-glass"), 300, &[])),
        "FORBIDDEN_BY_RULE [protected-accounts-stay]"
    );
    assert_eq!(
        summary(&authorize(
            &bundle,
            &disable("break-glass"),
            300,
            &["one-security", "two-security"]
        )),
        "FORBIDDEN_BY_RULE [protected-accounts-stay]"
    );
    // Assumed approvals end in a default denial: no approval is requested for what no rule allows.
    assert_eq!(
        summary(&authorize(&bundle, &disable("bob"), 300, &[])),
        "NO_RULE_ALLOWS []"
    );
}

#[test]
fn ceiling_is_checked_first() {
    let bundle = soc();
    let reporter = agent(&bundle, "reporter");
    assert_eq!(
        summary(&authorize_as(&bundle, &reporter, &read(), 60, &[])),
        "allowed 60 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize_as(&bundle, &reporter, &note(), 60, &[])),
        "OUTSIDE_CEILING []"
    );
}

#[test]
fn invalid_requests_are_denied() {
    let bundle = soc();
    assert_eq!(
        summary(&authorize(
            &bundle,
            &disable("nobody"),
            60,
            &["one-security"]
        )),
        "RULE_EVALUATION_FAILED []"
    );
    assert_eq!(
        summary(&authorize(&bundle, &note(), 0, &[])),
        "RULE_EVALUATION_FAILED []"
    );
    assert_eq!(
        summary(&authorize(&bundle, &note(), -5, &[])),
        "RULE_EVALUATION_FAILED []"
    );
    assert_eq!(
        summary(&authorize(
            &bundle,
            &action("case.note", "Case::INC-8841", &[]),
            60,
            &[]
        )),
        "RULE_EVALUATION_FAILED []"
    );
    let triage = agent(&bundle, "triage");
    let far = Timestamp::from_millis(i64::MAX);
    assert_eq!(
        bundle.may_operate(
            &triage,
            EvidenceKind::JwtSvid,
            EvidenceAges::ZERO,
            "jkt",
            far
        ),
        OperateDecision::Denied {
            why: DeniedReason::RuleEvaluationFailed,
            rules: vec![]
        }
    );
    // An approval under an unknown profile counts for nothing.
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &["three-security"])),
        "allowed 60 [soc-acts-at-home]"
    );
}

#[test]
fn operate_requires_fresh_evidence_and_a_key() {
    let bundle = soc();
    let triage = agent(&bundle, "triage");
    let operate = |issued_ms, binding| {
        bundle.may_operate(
            &triage,
            EvidenceKind::JwtSvid,
            EvidenceAges {
                issued_ms,
                verified_ms: 0,
            },
            binding,
            Timestamp::from_secs(0),
        )
    };
    assert!(
        matches!(operate(300_000, "jkt"), OperateDecision::Allowed { rules } if rules.len() == 1)
    );
    let none = OperateDecision::Denied {
        why: DeniedReason::NoRuleAllows,
        rules: vec![],
    };
    assert_eq!(operate(300_001, "jkt"), none);
    assert_eq!(operate(0, "bearer"), none);
    // No remedy lifts a forbid here.
    let bundle = soc_and(
        "@id(\"closed\") @step_up(\"one-security\") forbid (principal, action == Action::\"operate\", resource)
         when { context.now.toDate() == datetime(\"1970-01-01\") };",
    )
    .expect("bundle");
    let answer = bundle.may_operate(
        &agent(&bundle, "triage"),
        EvidenceKind::JwtSvid,
        EvidenceAges::ZERO,
        "jkt",
        Timestamp::from_secs(5),
    );
    assert!(
        matches!(answer, OperateDecision::Denied { why: DeniedReason::ForbiddenByRule, rules } if &*rules[0].id == "closed")
    );
}

#[test]
fn one_age_of_evidence_is_refused_with_both() {
    let rule = "@id(\"old\") forbid (principal, action, resource) when { context.evidence.age > duration(\"5m\") };";
    let error = soc_and(rule).expect_err("two ages").to_string();
    for part in [
        "evidence.age",
        "`context.evidence.issued_age`, since its issuer issued it",
        "`context.evidence.verified_age`, since this broker last verified it",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn context_has_millisecond_precision() {
    let rule = "@id(\"exact\") forbid (principal, action == Action::\"case.read\", resource) unless {
        context.now == datetime(\"2026-10-22T08:00:00.123Z\") && context.task.age == duration(\"1m\") &&
        context.evidence.verified_age == duration(\"1500ms\") && context.evidence.issued_age == duration(\"31s\") && context.evidence.kind == \"jwt-svid\" && context.task.depth == 0 &&
        context.ttl == duration(\"1m\") && context.target_known && context.audience == \"https://cases.soc.example\" &&
        context.binding == \"jkt\" && principal.model == \"example-large-2\" && principal.autonomy == \"supervised\" &&
        principal.owner in PersonGroup::\"security\" };";
    let bundle = soc_and(rule).expect("bundle");
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &[])),
        "allowed 60 [soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &read(), 61, &[])),
        "FORBIDDEN_BY_RULE [exact]"
    );
}

#[test]
fn remedies_are_verified_by_cedar() {
    // A remedy that does not lift its forbid.
    let bundle = soc_and(
        "@id(\"wrong\") @step_up(\"one-security\") forbid (principal, action, resource is Case);",
    );
    assert_eq!(
        summary(&authorize(&bundle.expect("bundle"), &read(), 60, &[])),
        "FORBIDDEN_BY_RULE [wrong]"
    );
    let bundle =
        soc_and("@id(\"wrong\") @max_ttl(\"10s\") forbid (principal, action, resource is Case);");
    assert_eq!(
        summary(&authorize(&bundle.expect("bundle"), &read(), 60, &[])),
        "FORBIDDEN_BY_RULE [wrong]"
    );
    // Two bounds: the least holds. Two profiles that both matter: both are required.
    let bundle = soc_and(
        "@id(\"a\") @max_ttl(\"30s\") forbid (principal, action == Action::\"case.read\", resource)
         when { context.ttl > duration(\"30s\") };
         @id(\"b\") @max_ttl(\"20s\") forbid (principal, action == Action::\"case.read\", resource)
         when { context.ttl > duration(\"20s\") };
         @id(\"c\") @step_up(\"one-security\") forbid (principal, action == Action::\"case.read\", resource)
         unless { context.approvals.contains(StepUp::\"one-security\") };
         @id(\"d\") @step_up(\"two-security\") forbid (principal, action == Action::\"case.read\", resource)
         unless { context.approvals.contains(StepUp::\"two-security\") };",
    )
    .expect("bundle");
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &[])),
        "needs one-security+two-security 20 [a b c d soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &read(), 25, &["two-security"])),
        "needs one-security 20 [b c soc-acts-at-home]"
    );
    assert_eq!(
        summary(&authorize(
            &bundle,
            &read(),
            20,
            &["one-security", "two-security"]
        )),
        "allowed 20 [soc-acts-at-home]"
    );
}

/// A remedy of several profiles asks for each that is not held, and the rule says whether all are needed.
#[test]
fn a_remedy_asks_for_several_profiles() {
    let both = |lifted: &str| {
        let rule = format!(
            "@id(\"both\") @step_up(\"one-passkey + one-security\") forbid (principal, action == Action::\"case.read\", resource)
             unless {{ context.approvals.{lifted} }};"
        );
        soc_and(&rule).expect("bundle")
    };
    let all = both("containsAll([StepUp::\"one-passkey\", StepUp::\"one-security\"])");
    let ask = |bundle, held: &[&str]| summary(&authorize(bundle, &read(), 60, held));
    assert_eq!(
        ask(&all, &[]),
        "needs one-passkey+one-security 60 [both soc-acts-at-home]"
    );
    assert_eq!(
        ask(&all, &["one-passkey"]),
        "needs one-security 60 [both soc-acts-at-home]"
    );
    assert_eq!(
        ask(&all, &["one-passkey", "one-security"]),
        "allowed 60 [soc-acts-at-home]"
    );
    // Where one is enough one is asked for.
    let any = both("containsAny([StepUp::\"one-passkey\", StepUp::\"one-security\"])");
    assert_eq!(
        ask(&any, &[]),
        "needs one-security 60 [both soc-acts-at-home]"
    );
}

/// What time alone changes is what Cedar says once it is assumed.
#[test]
fn a_delay_lifts_its_own_forbid() {
    let rules = |more: &str| {
        let text = format!(
            "@id(\"slow\") @step_up(\"one-security\") @delay(\"30m\") forbid (principal, action == Action::\"case.read\", resource)
             unless {{ context.approvals.contains(StepUp::\"one-security\") || context.waited >= duration(\"30m\") }};
             {more}"
        );
        soc_and(&text).expect("bundle")
    };
    let delay = |bundle: &PolicyBundle| match authorize(bundle, &read(), 60, &[]) {
        AuthzDecision::Needs { delay, .. } => delay.map(|delay| {
            let needs: Vec<String> = delay.needs.iter().map(|p| p.name.to_string()).collect();
            (delay.seconds, needs.join(" "))
        }),
        other => panic!("{other:?}"),
    };
    assert_eq!(delay(&rules("")), Some((1_800, String::new())));
    // Another rule that asks for the same people waits for nobody.
    let same = "@id(\"same\") @step_up(\"one-security\") forbid (principal, action == Action::\"case.read\", resource)
        unless { context.approvals.contains(StepUp::\"one-security\") };";
    assert_eq!(delay(&rules(same)), None);
    let other = same.replace("one-security", "one-passkey");
    assert_eq!(
        delay(&rules(&other)),
        Some((1_800, "one-passkey".to_owned()))
    );
    let longer = "@id(\"slower\") @step_up(\"one-passkey\") @delay(\"1h\") forbid (principal, action == Action::\"case.read\", resource)
        unless { context.approvals.contains(StepUp::\"one-passkey\") || context.waited >= duration(\"1h\") };";
    assert_eq!(delay(&rules(longer)), Some((3_600, String::new())));
    // Of the delays of a bundle the shortest after which the answer stays.
    let elsewhere = longer.replace("case.read", "case.note");
    assert_eq!(delay(&rules(&elsewhere)), Some((1_800, String::new())));
}

#[test]
fn max_ttl_is_tried_before_step_up() {
    let bundle = soc_and(
        "@id(\"long-takes-a-yes\") @step_up(\"one-security\") forbid (principal, action == Action::\"case.read\", resource)
         when { context.ttl > duration(\"20s\") } unless { context.approvals.contains(StepUp::\"one-security\") };
         @id(\"short\") @max_ttl(\"10s\") forbid (principal, action == Action::\"case.read\", resource)
         unless { context.ttl <= duration(\"10s\") };",
    )
    .expect("bundle");
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &[])),
        "allowed 10 [short soc-acts-at-home]"
    );
}

#[test]
fn evaluation_errors_deny() {
    let mut files = soc_files();
    let schema = files.get_mut("schema.cedarschema").expect("schema");
    *schema = schema.replace(
        "@title(\"Read a case\")",
        "@title(\"Read a case\")\n@open_targets",
    );
    let bundle = load(files).expect("bundle");
    // The case is not in the bundle, so `resource.environment` has no value.
    assert_eq!(
        summary(&authorize(
            &bundle,
            &action("case.read", "Case::new", &[]),
            60,
            &[]
        )),
        "RULE_EVALUATION_FAILED [soc-acts-at-home]"
    );
    // Cedar skips a failing forbid and would allow; here that denies. Overflow passes validation.
    let bundle = soc_and(
        "@id(\"overflows\") forbid (principal, action == Action::\"case.read\", resource)
         when { 9223372036854775807 + context.task.depth + 1 > 0 };",
    )
    .expect("bundle");
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &[])),
        "RULE_EVALUATION_FAILED [overflows]"
    );
}

#[test]
fn open_targets_set_target_known_false() {
    let mut files = soc_files();
    let schema = files.get_mut("schema.cedarschema").expect("schema");
    *schema = schema.replace(
        "@title(\"Read a case\")",
        "@title(\"Read a case\")\n@open_targets",
    );
    files.insert(
        "rules/30-more.cedar".into(),
        "@id(\"new-cases\") permit (principal, action == Action::\"case.read\", resource) when { !context.target_known };".into(),
    );
    let rules = files.get_mut("rules/10-agents.cedar").expect("policy");
    *rules = rules.replace(
        "when { principal.environment == resource.environment }",
        "when { context.target_known && principal.environment == resource.environment }",
    );
    let bundle = load(files).expect("bundle");
    assert_eq!(
        summary(&authorize(
            &bundle,
            &action("case.read", "Case::new", &[]),
            60,
            &[]
        )),
        "allowed 60 [new-cases]"
    );
    assert_eq!(
        summary(&authorize(&bundle, &read(), 60, &[])),
        "allowed 60 [soc-acts-at-home]"
    );
    let stranger = action("case.read", "Account::ann", &[]);
    assert!(matches!(
        bundle.check_action(&stranger),
        Err(ActionError::WrongTargetType { .. })
    ));
}

#[test]
fn check_action_errors() {
    let bundle = soc();
    assert_eq!(
        bundle.check_action(&disable("ann")).expect("fits").title,
        "Disable an account"
    );
    let problem = |a: &Action| bundle.check_action(a).expect_err("refused");
    for (name, target, message) in [
        (
            "account.disabel",
            "Account::ann",
            "the catalogue has no action `account.disabel`: did you mean `account.disable`?",
        ),
        (
            "write",
            "Account::ann",
            "the catalogue has no action `write`",
        ),
        (
            "operate",
            "Environment::prod",
            "the catalogue has no action `operate`",
        ),
        (
            "case.read",
            "Host::web-1",
            "the action is not for targets of type `Host`: expected Case",
        ),
    ] {
        let problem = problem(&action(name, target, &[])).to_string();
        assert_eq!(problem, message);
    }
    assert_eq!(
        problem(&disable("Ann")).to_string(),
        "the policy bundle has no target `Account::Ann`"
    );
    let mut other = read();
    other.audience = Audience::parse("https://cases.soc.example/").expect("audience");
    assert_eq!(
        problem(&other).to_string(),
        "no registered validator has the audience `https://cases.soc.example/`"
    );
    let wrong = |message: &str| ActionError::InvalidParameters(message.to_owned());
    assert_eq!(
        problem(&action("account.disable", "Account::ann", &[])),
        wrong("`end_sessions` is missing: expected true or false")
    );
    let texts = [("end_sessions", Param::Str("s3cret".into()))];
    assert_eq!(
        problem(&action("account.disable", "Account::ann", &texts)),
        wrong("`end_sessions`: expected true or false, got text")
    );
    let more = [
        ("end_sessions", Param::Bool(true)),
        ("force", Param::Bool(true)),
    ];
    assert_eq!(
        problem(&action("account.disable", "Account::ann", &more)),
        wrong("`force` is not a parameter of this action")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn approvals_are_monotonic(
        which in 0..6_usize,
        ttl_s in 1..2_000_i64,
        fewer in proptest::sample::subsequence(vec!["one-security", "two-security"], 0..=2),
        more in proptest::sample::subsequence(vec!["one-security", "two-security"], 0..=2),
    ) {
        thread_local!(static BUNDLE: PolicyBundle = soc());
        BUNDLE.with(|bundle| {
            let action = [read(), note(), disable("ann"), disable("bob"), isolate("web-1"), isolate("lab-7")][which].clone();
            let all: Vec<_> = fewer.iter().chain(&more).copied().collect();
            let (before, after) = (authorize(bundle, &action, ttl_s, &fewer), authorize(bundle, &action, ttl_s, &all));
            match &before {
                AuthzDecision::Allowed { ttl_ms, .. } => prop_assert!(matches!(&after, AuthzDecision::Allowed { ttl_ms: t, .. } if t == ttl_ms), "{}", summary(&after)),
                AuthzDecision::Needs { profiles, .. } => {
                    prop_assert!(!matches!(after, AuthzDecision::Denied { .. }), "{}", summary(&after));
                    // The required profiles suffice, with the promised time to live.
                    let names: Vec<_> = fewer.iter().copied().chain(profiles.iter().map(|p| p.name.as_str())).collect();
                    let then = authorize(bundle, &action, ttl_s, &names);
                    prop_assert!(matches!(then, AuthzDecision::Allowed { .. }), "{}", summary(&then));
                }
                AuthzDecision::Denied { .. } => {}
            }
            Ok(())
        })?;
    }
}
