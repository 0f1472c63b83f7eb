//! Policy bundles: loading, warnings, and every problem at once.

use super::*;

#[test]
fn example_bundle_has_no_warnings() {
    let bundle = soc();
    assert_eq!(bundle.warnings(), []);
    assert_eq!(bundle.actions().count(), 12);
    assert_eq!(bundle.rules().count(), 19);
    let disable = bundle
        .action(&ActionName::parse("account.disable").expect("name"))
        .expect("action");
    assert_eq!(
        disable.groups,
        BTreeSet::from(["destructive", "reversible", "write"].map(str::to_owned))
    );
    assert!(disable.single_use && !disable.open_targets);
    assert_eq!(disable.risk, Some(Risk::Medium));
    let note = bundle
        .action(&ActionName::parse("case.note").expect("name"))
        .expect("action");
    assert_eq!(note.sensitive(), BTreeSet::from(["text".to_owned()]));
    assert_eq!(
        note.parameters["text"].title.as_deref(),
        Some("Text of the note")
    );
    let rule = bundle.rule("writes-are-short").expect("rule");
    assert_eq!(
        (rule.line, rule.effect, rule.remedy.clone()),
        (6, RuleEffect::Forbid, Some(Remedy::MaxTtl(600)))
    );
    assert!(rule.text.starts_with("@id(\"writes-are-short\")") && rule.text.ends_with("};"));
}

#[test]
fn self_test_detects_missing_action_entities() {
    let mut bundle = soc();
    assert_eq!(
        selftest::verify(&bundle.evaluator, &bundle.catalogue),
        Ok(())
    );
    bundle.evaluator.store_mut().remove_actions();
    let broken = selftest::verify(&bundle.evaluator, &bundle.catalogue).expect_err("noticed");
    assert!(
        broken
            .iter()
            .any(|m| m.starts_with("forbid over \"write\" does not reach \"account.disable\"")),
        "{broken:?}"
    );
    // And this is what would have happened: `forbid (…, action in …)` silent, a permit that names its action allowed.
    bundle.rules.set = "permit (principal, action, resource); forbid (principal, action in Action::\"write\", resource);"
        .parse()
        .expect("policy");
    bundle.policy_index = PolicyIndex::build(&bundle.rules.set);
    assert!(matches!(
        authorize(&bundle, &disable("ann"), 60, &[]),
        AuthzDecision::Allowed { .. }
    ));
}

#[test]
fn all_problems_are_reported_at_once() {
    let mut files = soc_files();
    let edit = |files: &mut BTreeMap<String, String>, path: &str, from: &str, to: &str| {
        let text = files.get_mut(path).expect("file");
        *text = text.replacen(from, to, 1);
    };
    edit(
        &mut files,
        "agents.toml",
        "owner = \"dana\"",
        "ownr = \"dana\"",
    );
    edit(&mut files, "people.toml", "quorum = 1", "quorum = 0");
    edit(
        &mut files,
        "rules/20-guardrails.cedar",
        "@max_ttl(\"10m\")\nforbid",
        "@max_ttl(\"ten\")\nforbid",
    );
    edit(
        &mut files,
        "schema.cedarschema",
        "@title(\"Read a case\")",
        "@titel(\"Read a case\")",
    );
    let error = load(files).expect_err("refused");
    let text = error.to_string();
    for part in [
        "agents.toml:12: agent: owner is missing",
        "agents.toml:15: agent: unknown key \"ownr\" (did you mean \"owner\"?)",
        "quorum: must be a whole number from 1 to 20",
        "rules/20-guardrails.cedar:8:1: rule \"writes-are-short\": @max_ttl must be",
        "unknown annotation @titel (did you mean \"title\"?)",
        "action \"case.read\": @title is missing",
    ] {
        assert!(text.contains(part), "wanted {part:?} in:\n{text}");
    }
    assert_eq!(text.lines().count(), error.problems().len());
    // Nothing follows from a profile with a problem, which is declared all the same.
    assert_eq!(error.problems().len(), 6, "{text}");
}

#[test]
fn a_bundle_without_profiles_or_agents_loads_and_denies() {
    let files = BTreeMap::from(
        [
            ("schema.cedarschema", "entity Thing;"),
            (
                "rules/a.cedar",
                "@id(\"none\") forbid (principal, action, resource);",
            ),
            ("entities.json", "[]"),
            ("agents.toml", ""),
            ("people.toml", ""),
        ]
        .map(|(path, text)| (path.to_owned(), text.to_owned())),
    );
    let bundle = load(files).unwrap_or_else(|e| panic!("{e}"));
    assert!(matches!(
        bundle.check_action(&read()),
        Err(ActionError::UnknownAction { near: None, .. })
    ));
    assert!(
        bundle
            .agents_matching(&SpiffeId::parse("spiffe://soc.example/agent/triage").expect("id"))
            .is_empty()
    );
}

#[test]
fn bundle_is_send_and_sync() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&soc());
}
