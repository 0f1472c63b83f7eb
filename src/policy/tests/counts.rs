//! Counts: how they are read, which rules read them, and what the check finds about them.

use super::check::{checked, found, found_among, said};
use super::*;
use crate::model::{CountKind, CountName, PersonId};

const COUNTS: &str = r#"[count.ended]
title = "Sessions that one agent ended within an hour"
of = "tokens"
per = ["agent"]
actions = ["session.end"]
within = "1h"
"#;
const DENIED: &str = "[count.denied]\ntitle = \"Denials\"\nof = \"denials\"\nper = [\"owner\", \"action\"]\nwithin = \"24h\"\n";

fn with(counts: &str, rules: &str) -> BTreeMap<String, String> {
    let mut files = soc_files();
    files.insert("counts.toml".to_owned(), counts.to_owned());
    files.insert("rules/30-more.cedar".to_owned(), rules.to_owned());
    files
}

/// A forbid of isolating hosts under this condition, beside one of ending sessions that reads both counts.
fn when(condition: &str) -> BTreeMap<String, String> {
    let rules = format!(
        "@id(\"more\") forbid (principal, action == Action::\"host.isolate\", resource) {condition};\n\
         @id(\"both\") forbid (principal, action == Action::\"session.end\", resource) unless {{ context.counts.ended < 3 && context.counts.denied < 5 }};"
    );
    with(&format!("{COUNTS}\n{DENIED}"), &rules)
}

fn count(name: &str) -> CountName {
    CountName::parse(name).expect("count")
}

#[test]
fn counts_are_read_with_their_bounds() {
    let bundle = checked(when("unless { context.counts.ended < 3 }"));
    let bundle = bundle.unwrap_or_else(|e| panic!("{e}"));
    let (agent, owner) = (AgentId::parse("triage"), PersonId::parse("sam"));
    let (agent, owner) = (agent.expect("agent"), owner.expect("owner"));
    let end = ActionName::parse("session.end").expect("action");
    let ended = bundle.count(&count("ended")).expect("declared");
    assert!(
        ended.of == CountKind::Tokens && ended.actions.contains(&end) && ended.within_s == 3_600
    );
    assert!(
        !ended
            .actions
            .contains(&ActionName::parse("host.isolate").expect("action"))
    );
    assert_eq!(
        ended.key(&agent, &owner, &end).to_string(),
        "ended/agent:triage"
    );
    let denied = bundle.count(&count("denied")).expect("declared");
    assert_eq!(
        denied.key(&agent, &owner, &end).to_string(),
        "denied/owner:sam/action:session.end"
    );
    for (from, to, rule) in [
        ("ended", "Ended", "lowercase letters"),
        ("ended", "has", "no word of Cedar's"),
        (
            "tokens",
            "mints",
            "must be \"requests\", \"denials\", \"tokens\" or \"uses\"",
        ),
        ("of = \"tokens\"\n", "", "of is missing"),
        ("\"1h\"", "\"59s\"", "must be 1m to 24h"),
        ("\"1h\"", "\"25h\"", "must be 1m to 24h"),
        ("within = \"1h\"\n", "", "within is missing"),
        ("per = [\"agent\"]\n", "", "per is missing"),
        (
            "[\"agent\"]",
            "[\"agent\", \"owner\"]",
            "must be a list of \"agent\" or \"owner\"",
        ),
        (
            "[\"agent\"]",
            "[\"task\"]",
            "must be a list of \"agent\" or \"owner\"",
        ),
        (
            "[\"agent\"]",
            "[\"agent\", \"agent\"]",
            "must be a list of \"agent\" or \"owner\"",
        ),
        ("[\"agent\"]", "\"agent\"", "must be a list of texts"),
        (
            "[\"session.end\"]",
            "[\"session.edn\"]",
            "is no action and no group of actions of schema.cedarschema (did you mean \"session.end\"?)",
        ),
        ("[\"session.end\"]", "[]", "must name an action or a group"),
        ("Sessions that one agent ended within an hour", "", "title"),
        ("within =", "wihtin =", "wihtin"),
    ] {
        let text = COUNTS.replacen(from, to, 1);
        let rule_text = "@id(\"more\") forbid (principal, action == Action::\"session.end\", resource) unless { context.counts.ended < 3 };";
        let said = said(with(&text, rule_text));
        assert!(
            said.contains("counts.toml:") && said.contains(rule),
            "{text}: {said}"
        );
    }
    let many: String = (0..9)
        .map(|n| COUNTS.replace("count.ended", &format!("count.c{n}")))
        .collect();
    assert!(said(with(&many, "")).contains("at most 8 counts"));
}

/// A group stands for every action in it.
#[test]
fn groups_of_actions_are_counted() {
    let text = COUNTS.replace("session.end", "destructive");
    let rule = "@id(\"more\") forbid (principal, action == Action::\"session.end\", resource) unless { context.counts.ended < 3 };";
    let bundle = checked(with(&text, rule)).unwrap_or_else(|e| panic!("{e}"));
    let ended = bundle.count(&count("ended")).expect("declared");
    let of = |name| {
        ended
            .actions
            .contains(&ActionName::parse(name).expect("action"))
    };
    assert!(of("account.disable"));
    assert!(!of("case.read"));
}

/// Rules whose scope cannot match a request are not in its slice, and their counts are no part of it.
#[test]
fn counts_in_scope_are_those_of_the_rules_in_scope() {
    let bundle = checked(when("unless { context.counts.ended < 3 }"));
    let bundle = bundle.unwrap_or_else(|e| panic!("{e}"));
    let counts = |action: &str, kind: &str, id: &str| {
        let agent = AgentId::parse("triage").expect("agent");
        let name = ActionName::parse(action).expect("action");
        let target = Target::parse(kind, id).expect("target");
        let counts = bundle.counts_in_scope(&agent, &name, &target).into_iter();
        counts.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(counts("host.isolate", "Host", "web-1"), ["ended"]);
    assert_eq!(counts("session.end", "Account", "ann"), ["denied", "ended"]);
    assert_eq!(
        counts("case.read", "Case", "INC-8841"),
        Vec::<String>::new()
    );
}

#[test]
fn the_check_tries_the_bounds_and_knows_which_way_a_count_goes() {
    for (condition, expected) in [
        ("unless { context.counts.ended < 3 }", vec![]),
        ("when { context.counts.ended >= 3 }", vec![]),
        ("when { 3 <= context.counts.ended }", vec![]),
        (
            "unless { context.counts.ended + context.counts.denied < 3 }",
            vec![],
        ),
        (
            "unless { context.counts has ended && context.counts.ended < 3 }",
            vec![],
        ),
        (
            "unless { context.counts.ended < 3 || context.ttl < duration(\"1m\") }",
            vec![],
        ),
        ("when { context.counts.ended < 3 }", vec!["count-allows"]),
        ("unless { context.counts.ended > 3 }", vec!["count-allows"]),
        ("unless { context.counts.ended == 0 }", vec!["count-allows"]),
        (
            "unless { {c: context.counts}.c.ended < 3 }",
            vec!["count-allows"],
        ),
        (
            "when { context.counts.ended - context.counts.denied > 3 }",
            vec!["count-allows"],
        ),
        // No count is below 0, and none stays at it.
        ("when { context.counts.ended < 0 }", vec!["never-matches"]),
        ("when { context.counts.ended >= 0 }", vec!["always-true"]),
        (
            "when { context.counts.ended > 2 && context.counts.ended < 3 }",
            vec!["never-matches"],
        ),
    ] {
        let names = [
            "count-allows",
            "never-matches",
            "always-true",
            "undeclared-name",
        ];
        let findings = found_among(when(condition), &names);
        assert_eq!(findings, expected, "{condition}");
    }
    let permit = "@id(\"more\") permit (principal == Agent::\"reporter\", action == Action::\"case.read\", resource) when { context.counts.ended > 3 };";
    assert!(found(with(COUNTS, permit)).contains(&"count-allows"));
    let unread = with(
        &format!("{COUNTS}\n{DENIED}"),
        "@id(\"more\") forbid (principal, action == Action::\"host.isolate\", resource) unless { context.counts.ended < 3 };",
    );
    assert_eq!(found(unread), ["unread-count"]);
    // Gate 1 reads none.
    let operate = "@id(\"more\") forbid (principal, action == Action::\"operate\", resource) unless { context.counts.ended < 3 };";
    assert!(said(with(COUNTS, operate)).contains("counts"));
}

/// A count that nothing raises guards nothing, and a name that is declared elsewhere is none of a count.
#[test]
fn counts_that_stay_at_zero_are_known() {
    let rule = |condition: &str| {
        format!(
            "@id(\"more\") forbid (principal, action == Action::\"session.end\", resource) {condition};"
        )
    };
    let high = rule("when { context.counts.ended >= 3 }");
    for (from, to, expected) in [
        ("ended]", "ended]", vec![]),
        ("\"tokens\"", "\"uses\"", vec![]),
        (
            "of = \"tokens\"\nper = [\"agent\"]\nactions = [\"session.end\"]",
            "of = \"uses\"\nper = [\"agent\"]\nactions = [\"case.read\"]",
            vec!["never-matches"],
        ),
        ("\"session.end\"", "\"account.disable\"", vec![]),
        (
            "per = [\"agent\"]\nactions = [\"session.end\"]",
            "per = [\"action\"]\nactions = [\"account.disable\"]",
            vec!["never-matches"],
        ),
        // Requests and denials of every agent count.
        ("\"tokens\"", "\"requests\"", vec![]),
    ] {
        let text = COUNTS.replacen(from, to, 1);
        assert_eq!(found(with(&text, &high)), expected, "{from} {to}");
    }
    for undeclared in [
        "unless { context.counts has model && context.counts.ended < 3 }",
        "when { context.counts.ended >= 3 && !(context.counts has end_sessions) }",
        "when { context.counts has ended && context.counts has ttl && context.counts.ended >= 3 }",
    ] {
        let said = said(with(COUNTS, &rule(undeclared)));
        let known = "is never true: counts.toml has no such count";
        assert!(said.contains(known), "{undeclared}: {said}");
    }
    for declared in [
        "unless { context has counts.ended && context.counts.ended < 3 }",
        "unless { context has counts && context.counts has ended && context.counts.ended < 3 }",
    ] {
        let findings = found(with(COUNTS, &rule(declared)));
        assert_eq!(findings, Vec::<&str>::new(), "{declared}");
    }
    let operate =
        "@id(\"more\") forbid (principal, action, resource) unless { context.counts.ended < 3 };";
    let said = said(with(COUNTS, operate));
    assert!(said.contains("name actions in the rule's scope"), "{said}");
}

/// Of a recommendation the recommending agent's counts are asked for; the executor's are asked for when it asks.
#[test]
fn a_recommendation_reads_no_count_of_its_executor() {
    let rule = |agent: &str| {
        format!(
            "@id(\"more\") forbid (principal == Agent::\"{agent}\", action == Action::\"session.end\", resource) unless {{ context.counts.ended < 3 }};"
        )
    };
    let answer = |of: &str| {
        let bundle = checked(with(COUNTS, &rule(of))).unwrap_or_else(|e| panic!("{e}"));
        let action = Action::new(
            ActionName::parse("session.end").expect("name"),
            Audience::parse("https://idp.soc.example").expect("audience"),
            Target::parse("Account", "ann").expect("target"),
            BTreeMap::new(),
        );
        let decision = bundle.authorize(&AuthzRequest {
            waited_ms: 0,
            agent: &agent(&bundle, "assistant"),
            action: &action.expect("action"),
            ttl_ms: 60_000,
            approvals: &profiles(&[]),
            evidence_kind: EvidenceKind::JwtSvid,
            evidence_ages: EvidenceAges::ZERO,
            binding: "jkt",
            task_age_ms: 0,
            task_depth: 0,
            now: Timestamp::from_secs(1_792_656_000),
            executor: Some(&AgentId::parse("responder").expect("id")),
            facts: &crate::model::FactValues::new(),
            counts: &crate::model::CountValues::from([(count("ended"), 5)]),
        });
        matches!(decision, AuthzDecision::Needs { .. })
    };
    assert!(answer("responder"));
    assert!(!answer("assistant"));
}

/// A plan says of which counts it has no numbers, or others.
#[test]
fn a_plan_names_the_counts_that_it_does_not_know() {
    let rule = |id: &str| {
        format!(
            "@id(\"{id}\") forbid (principal, action == Action::\"session.end\", resource) unless {{ context.counts.ended < 3 }};"
        )
    };
    let bundle = |counts: &str, rules: &str| {
        let files = BundleFiles::new(with(counts, rules)).expect("files");
        PolicyBundle::load(&files).unwrap_or_else(|e| panic!("{e}"))
    };
    let none = PolicyBundle::load(&BundleFiles::new(soc_files()).expect("files")).expect("bundle");
    let base = bundle(COUNTS, &rule("more"));
    let other = bundle(&COUNTS.replace("1h", "2h"), &rule("more"));
    let anew = bundle(COUNTS, &format!("{}{}", rule("more"), rule("other")));
    assert_eq!(sentences::counts(&base, &base), Vec::<String>::new());
    for (before, after, said) in [
        (&none, &base, "the count ended is new"),
        (&base, &other, "the count ended is declared otherwise"),
        (&base, &anew, "other read the count ended anew"),
    ] {
        let sentences = sentences::counts(before, after);
        assert_eq!(sentences.len(), 1, "{sentences:?}");
        assert!(sentences[0].starts_with(said), "{sentences:?}");
    }
}

#[test]
fn tests_say_counts() {
    let tests = |counts: &str| {
        let mut files = when("unless { context.counts.ended < 3 }");
        let case = format!(
            "\n[[case]]\nname = \"the fourth\"\nagent = \"triage\"\naction = \"session.end\"\ntarget = \"Account::ann\"\n\
             audience = \"https://idp.soc.example\"\n\
             counts = {counts}\nexpect = \"allowed\"\n"
        );
        files
            .entry("tests.toml".to_owned())
            .or_default()
            .push_str(&case);
        files
    };
    for (counts, expected) in [
        (
            "{ edned = 1 }",
            "\"edned\" is not a count of counts.toml (did you mean \"ended\"?)",
        ),
        ("{ ended = -1 }", "must be a whole number from 0"),
        ("{ ended = \"1\" }", "must be a whole number from 0"),
        ("3", "must be written as"),
    ] {
        let said = said(tests(counts));
        assert!(said.contains(expected), "{counts}: {said}");
    }
    for (counts, is_met) in [
        ("{ ended = 2, denied = 4 }", true),
        ("{ denied = 4 }", true),
        ("{ ended = 3 }", false),
    ] {
        let files = BundleFiles::new(tests(counts)).expect("files");
        let (_, report) = PolicyBundle::load_and_test(&files).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(report.failures.is_empty(), is_met, "{counts}");
    }
}
