//! The check before an apply. What each mistake is told by it, the tests of the command line show.

use super::*;

pub(super) fn checked(files: BTreeMap<String, String>) -> Result<PolicyBundle, BundleError> {
    PolicyBundle::load_checked(&BundleFiles::new(files)?)
}

/// The soc bundle with one more file of rules.
pub(super) fn with_rules(rules: &str) -> BTreeMap<String, String> {
    let mut files = soc_files();
    files.insert("rules/30-more.cedar".to_owned(), rules.to_owned());
    files
}

/// The checks that find something, by name, in the order of their findings.
pub(super) fn found(files: BTreeMap<String, String>) -> Vec<&'static str> {
    match checked(files) {
        Ok(bundle) => bundle.warnings().iter().filter_map(|w| w.check).collect(),
        Err(error) => error
            .problems()
            .iter()
            .map(|p| p.check.unwrap_or("invalid"))
            .collect(),
    }
}

/// Those of these checks that find something, each once, by name.
pub(super) fn found_among(files: BTreeMap<String, String>, names: &[&str]) -> Vec<&'static str> {
    let mut findings = found(files);
    findings.retain(|name| names.contains(name));
    findings.sort_unstable();
    findings.dedup();
    findings
}

#[test]
fn the_example_has_no_finding() {
    let bundle = checked(soc_files()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(bundle.warnings(), []);
}

/// Conditions in every form that the check decides.
#[test]
fn conditions_are_decided() {
    let forbid = |conditions: &str| {
        found(with_rules(&format!(
            "@id(\"more\") forbid (principal, action == Action::\"account.disable\", resource) {conditions};"
        )))
    };
    for sound in [
        "when { context.parameters.end_sessions }",
        "when { context.evidence.verified_age > duration(\"5m\") && context.evidence.verified_age < duration(\"6m\") }",
        "when { context.now.toTime() >= duration(\"20h\") || context.now.toTime() < duration(\"6h\") }",
        "when { context.now < datetime(\"2030-01-01\") }",
        "when { context.task.age > duration(\"1d\") }",
        "when { principal.owner == Person::\"maria\" }",
        "when { principal in AgentGroup::\"soc\" && resource == Account::\"ann\" }",
        "when { [\"advisory\", \"autonomous\"].contains(principal.autonomy) }",
        "when { if resource.protected then context.ttl > duration(\"1m\") else false }",
        "when { resource.name like \"Break*\" }",
        "unless { principal.environment == resource.environment }",
        "when { resource.environment == Environment::\"staging\" } unless { context.ttl < duration(\"1m\") }",
    ] {
        assert_eq!(forbid(sound), Vec::<&str>::new(), "{sound}");
    }
    for (never, finding) in [
        (
            "when { !(context.approvals.containsAll([StepUp::\"one-security\", StepUp::\"two-security\"])) }",
            "approval-unasked",
        ),
        (
            "when { context.ttl > duration(\"5m\") && context.ttl < duration(\"5m\") }",
            "never-matches",
        ),
        ("when { context.ttl < duration(\"0s\") }", "never-matches"),
        ("when { context.task.depth < 0 }", "never-matches"),
        ("when { context.task.depth > 0 }", "never-matches"),
        ("when { context.binding == \"bearer\" }", "never-matches"),
        (
            "when { context.binding != \"bearer\" } when { resource.protected }",
            "always-true",
        ),
        ("when { context.ttl > duration(\"1h\") }", "never-matches"),
        (
            "when { context.ttl <= duration(\"1h\") } when { resource.protected }",
            "always-true",
        ),
        (
            "when { context.parameters.end_sessions && !context.parameters.end_sessions }",
            "never-matches",
        ),
        (
            "unless { context.approvals.isEmpty() || context.approvals.contains(StepUp::\"one-security\") || true }",
            "never-matches",
        ),
        (
            "when { resource.protected && resource == Account::\"ann\" }",
            "never-matches",
        ),
        ("when { context.target_known == false }", "never-matches"),
        (
            "when { context.audience like \"https://*\" } when { resource.protected }",
            "always-true",
        ),
        (
            "when { context.ttl > duration(\"0s\") } when { resource.protected }",
            "always-true",
        ),
        (
            "when { resource.protected } unless { context.ttl < duration(\"0s\") }",
            "always-true",
        ),
        (
            "when { context.evidence.kind == \"jwt-svid\" } when { resource.protected }",
            "always-true",
        ),
        (
            "when { resource.protected || !resource.protected }",
            "always-true",
        ),
        ("unless { context.ttl < duration(\"0s\") }", "always-true"),
        ("when { resource.name == \"Ann\" }", "undeclared-value"),
        (
            "when { principal.model == \"example-large-3\" }",
            "undeclared-value",
        ),
        ("when { context.binding == \"mtls\" }", "undeclared-value"),
        (
            "when { context.audience == \"https://idp.soc.exampel\" }",
            "undeclared-name",
        ),
        (
            "when { principal.owner == Person::\"mario\" }",
            "undeclared-name",
        ),
    ] {
        assert!(
            forbid(never).contains(&finding),
            "{never}: {:?}",
            forbid(never)
        );
    }
    let note = |conditions: &str| {
        found(with_rules(&format!(
            "@id(\"more\") forbid (principal, action == Action::\"case.note\", resource) {conditions};"
        )))
    };
    for sound in [
        "when { context.parameters.text like \"*urgent*\" && context.parameters.text != \"urgent\" }",
        "when { context.parameters.text == resource.title }",
        "when { context.parameters.text == \"x\" || context.parameters.text == \"y\" }",
        "when { context.now > datetime(\"2027-01-01\") && context.now.toTime() > duration(\"20h\") }",
    ] {
        assert_eq!(note(sound), Vec::<&str>::new(), "{sound}");
    }
    // What samples cannot decide is said, and is no error.
    let patterns =
        "when { context.parameters.text like \"a*\" && context.parameters.text like \"*b\" }";
    assert_eq!(note(patterns), ["undecided"]);
    let relates = "when { context.evidence.verified_age > context.task.age && context.evidence.verified_age < context.task.age }";
    assert_eq!(forbid(relates), ["undecided"]);
    let related = "when { context.evidence.verified_age > context.task.age }";
    assert_eq!(forbid(related), Vec::<&str>::new());
}

#[test]
fn a_remedy_lifts_its_own_forbid() {
    let step_up = |remedy: &str, unless: &str| {
        found(with_rules(&format!(
            "@id(\"more\") {remedy} forbid (principal, action == Action::\"host.isolate\", resource) unless {{ {unless} }};"
        )))
    };
    let two = "@step_up(\"two-security\")";
    for sound in [
        "context.approvals.contains(StepUp::\"two-security\")",
        "context.approvals.containsAny([StepUp::\"two-security\", StepUp::\"one-passkey\"])",
        "context.approvals.contains(StepUp::\"two-security\") && context.evidence.verified_age < duration(\"1m\")",
    ] {
        assert_eq!(step_up(two, sound), Vec::<&str>::new(), "{sound}");
    }
    for wrong in [
        "context.approvals.contains(StepUp::\"one-passkey\")",
        "context.approvals.containsAll([StepUp::\"two-security\", StepUp::\"one-passkey\"]) && context.ttl < duration(\"0s\")",
        "context.approvals.contains(StepUp::\"two-security\") && resource.environment == Environment::\"staging\"",
        "resource.environment == Environment::\"staging\"",
    ] {
        let found = step_up(two, wrong);
        assert!(found.contains(&"remedy-never-lifts"), "{wrong}: {found:?}");
    }
    let short = "context.ttl <= duration(\"5m\")";
    assert_eq!(step_up("@max_ttl(\"5m\")", short), Vec::<&str>::new());
    assert_eq!(step_up("@max_ttl(\"4m\")", short), Vec::<&str>::new());
    assert_eq!(step_up("@max_ttl(\"6m\")", short), ["remedy-never-lifts"]);
}

#[test]
fn no_approval_and_no_shorter_lifetime_forbids() {
    let rule = |effect: &str, conditions: &str| {
        found(with_rules(&format!(
            "@id(\"more\") {effect} (principal, action == Action::\"account.disable\", resource) {conditions};"
        )))
    };
    for sound in [
        "unless { context.approvals.contains(StepUp::\"two-security\") }",
        "unless { [StepUp::\"two-security\"].containsAny(context.approvals) }",
        "unless { !context.approvals.isEmpty() }",
        "when { [StepUp::\"one-security\"].containsAll(context.approvals) }",
        "unless { context.approvals.containsAll([StepUp::\"two-security\"]) && context.ttl <= duration(\"5m\") }",
        "when { duration(\"5m\") < context.ttl }",
        "when { context.ttl.toMinutes() > 5 }",
        "when { context.ttl.toSeconds() - 30 >= 5 }",
        "when { 100 - context.ttl.toSeconds() < 5 }",
        "when { context.now.offset(context.ttl) > datetime(\"2030-01-01\") }",
        "unless { if context.approvals.contains(StepUp::\"two-security\") then true else context.ttl <= duration(\"1m\") }",
        "when { if context.ttl <= duration(\"1m\") then false else resource.protected }",
    ] {
        let found = rule("forbid", sound);
        let wrong = ["approval-forbids", "shorter-forbids"];
        assert!(
            !found.iter().any(|f| wrong.contains(f)),
            "{sound}: {found:?}"
        );
    }
    for (wrong, finding) in [
        ("when { context.ttl < duration(\"1m\") }", "shorter-forbids"),
        (
            "unless { duration(\"1m\") < context.ttl }",
            "shorter-forbids",
        ),
        (
            "when { context.ttl == duration(\"1m\") }",
            "shorter-forbids",
        ),
        (
            "unless { context.ttl.toSeconds() * -1 > 5 }",
            "shorter-forbids",
        ),
        (
            "when { context.ttl > duration(\"5m\") && context.ttl < duration(\"6m\") }",
            "shorter-forbids",
        ),
        ("unless { context.approvals.isEmpty() }", "approval-forbids"),
        (
            "when { context.approvals.contains(StepUp::\"one-security\") }",
            "approval-forbids",
        ),
        (
            "unless { context.approvals == [StepUp::\"two-security\"] }",
            "approval-forbids",
        ),
        (
            "unless { [StepUp::\"two-security\"].containsAll(context.approvals) }",
            "approval-forbids",
        ),
        (
            "when { if context.approvals.isEmpty() then resource.protected else context.target_known }",
            "approval-forbids",
        ),
    ] {
        let found = rule("forbid", wrong);
        assert!(found.contains(&finding), "{wrong}: {found:?}");
        assert!(!found.contains(&"never-matches"), "{wrong}: {found:?}");
    }
    for (wrong, finding) in [
        ("when { context.approvals.isEmpty() }", "approval-forbids"),
        (
            "when { context.ttl >= duration(\"1m\") }",
            "shorter-forbids",
        ),
    ] {
        assert_eq!(rule("permit", wrong), [finding], "{wrong}");
        let right = wrong.replacen("when", "unless", 1);
        assert_eq!(rule("permit", &right), Vec::<&str>::new(), "{right}");
    }
    let mut files = with_rules(
        "@id(\"more\") forbid (principal, action == Action::\"account.disable\", resource) when { context.ttl < duration(\"1m\") };",
    );
    let silence = "[[silence]]\ncheck = \"shorter-forbids\"\nof = \"more\"\nreason = \"the provider needs a minute\"\n";
    files.insert("checks.toml".to_owned(), silence.to_owned());
    let bundle = checked(files).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(bundle.warnings().len(), 1);
}

#[test]
fn a_silence_has_a_reason_and_a_finding() {
    let rule = "@id(\"more\") forbid (principal, action == Action::\"account.disable\", resource)\nwhen { context.task.depth < 0 };";
    let silenced = |silence: &str| {
        let mut files = with_rules(rule);
        files.insert("checks.toml".to_owned(), silence.to_owned());
        checked(files)
    };
    let own = "[[silence]]\ncheck = \"never-matches\"\nof = \"more\"\n";
    let bundle = silenced(&format!("{own}reason = \"depth comes later\"\n"));
    let bundle = bundle.unwrap_or_else(|e| panic!("{e}"));
    let warnings: Vec<String> = bundle.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].starts_with("rules/30-more.cedar:2:1: silenced by the bundle (\"depth comes later\"): rule \"more\": can never match"),
        "{warnings:?}"
    );
    refused(silenced(own), "checks.toml:1: silence: reason is missing");
    refused(
        silenced(&format!("{}reason = \"x\"\n", own.replace("more", "mor"))),
        "checks.toml:1: silence: nothing is found that never-matches of \"mor\" would silence",
    );
    refused(
        silenced(&format!(
            "{}reason = \"x\"\n",
            own.replace("never-matches", "never-match")
        )),
        "no check has this name (did you mean \"never-matches\"?)",
    );
    refused(
        silenced(&format!(
            "{}reason = \"x\"\n",
            own.replace("never-matches", "undeclared-name")
        )),
        "an undeclared name cannot be silenced",
    );
}

/// The bundle in force is loaded without the check: a newer broker with more checks starts with it.
#[test]
fn a_load_does_not_check() {
    let files =
        with_rules("@id(\"more\") forbid (principal in AgentGroup::\"sok\", action, resource);");
    assert!(load(files.clone()).is_ok());
    assert_eq!(found(files), ["undeclared-name"]);
}

/// What a bundle of many rules would take too long to decide is counted, and nothing is claimed about it.
#[test]
fn what_is_not_decided_is_counted() {
    let rule = |n: usize| {
        format!(
            "@id(\"more-{n}\") forbid (principal, action == Action::\"account.disable\", resource) \
             when {{ context.task.age > duration(\"{n}h\") }};\n"
        )
    };
    let text: String = (0..30).map(rule).collect();
    let mut files = with_rules(&text);
    files.insert(
        "checks.toml".to_owned(),
        "[[silence]]\ncheck = \"never-matches\"\nof = \"more-29\"\nreason = \"may be asked about\"\n".to_owned(),
    );
    let bundle = load(files.clone()).unwrap_or_else(|e| panic!("{e}"));
    let files = BundleFiles::new(files).expect("files");
    let within = |samples_max| {
        let (mut problems, mut warnings) = (Problems::default(), Problems::default());
        crate::policy::check::check(
            &bundle,
            &files,
            true,
            samples_max,
            &mut problems,
            &mut warnings,
        );
        (problems.into_sorted(), warnings.into_sorted())
    };
    let (problems, warnings) = within(60);
    assert_eq!(
        (problems.len(), warnings.len()),
        (0, 1),
        "{problems:?} {warnings:?}"
    );
    let counted = &warnings[0];
    assert_eq!(counted.check, Some("undecided"));
    let number = counted
        .message
        .split(' ')
        .next()
        .and_then(|n| n.parse::<usize>().ok());
    let total = bundle.rules().count();
    assert!(number.is_some_and(|n| (1..total).contains(&n)), "{counted}");
    assert!(
        counted
            .message
            .contains(&format!("of {total} rules could not be decided")),
        "{counted}"
    );
    // With enough of them nothing is left out, and the silence turns out to silence nothing.
    let (problems, warnings) = within(100_000);
    assert_eq!(warnings, []);
    assert!(
        problems[0]
            .message
            .contains("nothing is found that never-matches of \"more-29\"")
    );
}

/// The findings, each on a line.
pub(super) fn said(files: BTreeMap<String, String>) -> String {
    match checked(files) {
        Ok(bundle) => {
            let warnings = bundle.warnings().iter();
            warnings.map(|w| format!("warning {w}\n")).collect()
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_silence_hides_only_what_it_names() {
    let mut files = with_rules(
        "@id(\"more\") forbid (principal, action == Action::\"account.disable\", resource)\n\
         when { resource.name != \"nobody\" } when { context.ttl < duration(\"0s\") };",
    );
    let people = files.get_mut("people.toml").expect("a file");
    *people = people.replacen("quorum = 2", "quorum = 3", 1);
    files.insert(
        "checks.toml".to_owned(),
        "[[silence]]\ncheck = \"undeclared-value\"\nof = \"more\"\nreason = \"soon\"\n".to_owned(),
    );
    let said = said(files);
    for finding in ["can never match", "[quorum-unreachable]"] {
        assert!(said.contains(finding), "{said}");
    }
}

/// The samples are the requests that there can be: no others, and none left out.
#[test]
fn samples_are_the_requests_that_there_can_be() {
    let rule = |rule: &str| found(with_rules(&format!("@id(\"more\") {rule};")));
    let none = Vec::<&str>::new();
    // What `operate` has not.
    for condition in [
        "context has approvals",
        "context has ttl",
        "context has task",
        "context has parameters",
    ] {
        let guard = format!(
            "forbid (principal, action == Action::\"operate\", resource) when {{ {condition} }}"
        );
        assert!(rule(&guard).contains(&"never-matches"), "{guard}");
        let guard = format!(
            "permit (principal, action == Action::\"case.read\", resource) when {{ {condition} }} when {{ context.task.age < duration(\"1h\") }}"
        );
        assert_eq!(rule(&guard), ["always-true"], "{guard}");
    }
    // A profile that no rule asks for never approves.
    let asked = |more: &str| {
        let mut files = with_rules(more);
        let people = files.get_mut("people.toml").expect("a file");
        people.push_str("\n[profile.unasked]\ngroup = \"security\"\nquorum = 1\nwait = \"15m\"\ngood_for = \"10m\"\nmethod = \"passkey\"\n");
        found(files)
    };
    let permit = |profile: &str| {
        format!(
            "@id(\"more\") permit (principal, action == Action::\"account.disable\", resource) when {{ context.approvals.contains(StepUp::\"{profile}\") }};"
        )
    };
    let unasked = asked(&permit("unasked"));
    assert!(unasked.contains(&"never-matches"), "{unasked:?}");
    assert_eq!(asked(&permit("one-security")), none);
    let both = "@id(\"more\") @step_up(\"two-security\") forbid (principal, action == Action::\"case.read\", resource) \
         unless { context.approvals.containsAll([StepUp::\"two-security\", StepUp::\"unasked\"]) };";
    let found_both = asked(both);
    assert!(found_both.contains(&"remedy-never-lifts"), "{found_both:?}");
    let empty = "permit (principal, action == Action::\"case.read\", resource) when { context.approvals.isEmpty() }";
    // There is no approval at this action.
    assert_eq!(rule(empty), ["approval-forbids", "always-true"]);
    // JSON keeps integers up to 2^53 - 1.
    let minutes = |condition: &str| {
        rule(&format!(
            "forbid (principal, action == Action::\"privilege.grant\", resource) when {{ {condition} }}"
        ))
    };
    let beyond = minutes("context.parameters.minutes > 9007199254740991");
    assert!(beyond.contains(&"never-matches"), "{beyond:?}");
    assert_eq!(
        minutes("context.parameters.minutes > 9007199254740990"),
        none
    );
}

#[test]
fn a_lift_that_is_not_decided_is_said() {
    let rule = |unless: &str| {
        found(with_rules(&format!(
            "@id(\"more\") @step_up(\"two-security\") forbid (principal, action == Action::\"case.note\", resource)\n\
             when {{ context.parameters.text like \"*urgent*\" }} unless {{ context.approvals.contains(StepUp::\"{unless}\") }};"
        )))
    };
    assert_eq!(rule("two-security"), Vec::<&str>::new());
    // Neither whether the exception ever holds nor whether the remedy lifts it.
    assert_eq!(rule("one-security"), ["undecided"; 2]);
}

#[test]
fn a_permit_for_every_agent_is_for_everyone() {
    let permit = |principal: &str| {
        found(with_rules(&format!(
            "@id(\"more\") permit ({principal}, action, resource);"
        )))
    };
    for open in ["principal", "principal is Agent"] {
        assert!(permit(open).contains(&"unconstrained-permit"), "{open}");
    }
    assert!(!permit("principal in AgentGroup::\"soc\"").contains(&"unconstrained-permit"));
}

#[test]
fn a_name_that_nothing_has_is_found_wherever_it_stands() {
    let rule = |condition: &str| {
        said(with_rules(&format!(
            "@id(\"more\") forbid (principal, action == Action::\"account.disable\", resource)\nwhen {{ {condition} }};"
        )))
    };
    for wrong in [
        "resource.protected || resource has protcted",
        "resource.protected && !(context has approvls)",
        "if context.parameters has end_session then true else resource.protected",
        // Of another action.
        "resource.protected || context.parameters has minutes",
    ] {
        let said = rule(wrong);
        assert!(
            said.contains("is never true: no entity") && said.contains("[undeclared-name]"),
            "{wrong}: {said}"
        );
    }
    assert!(
        rule("resource.protected || resource has protcted")
            .starts_with("rules/30-more.cedar:2:43: ")
    );
    for sound in [
        "resource.protected || resource has privileged",
        "resource.protected || !(context has approvals)",
    ] {
        assert!(
            !rule(sound).contains("undeclared-name"),
            "{sound}: {}",
            rule(sound)
        );
    }
}

#[test]
fn texts_of_authors_stay_inside_their_quotes() {
    let mut files = with_rules(
        "@id(\"more\") forbid (principal, action == Action::\"account.disable\", resource)\nwhen { context.ttl < duration(\"0s\") };",
    );
    let silence = "[[silence]]\ncheck = \"never-matches\"\nof = \"more\"\nreason = 'fine\"): nothing to see (\"'\n";
    files.insert("checks.toml".to_owned(), silence.to_owned());
    let silenced = said(files.clone());
    assert!(
        silenced.contains(r#"silenced by the bundle ("fine\"): nothing to see (\""):"#),
        "{silenced}"
    );
    files.insert(
        "checks.toml".to_owned(),
        format!(
            "{silence}{}",
            silence.replace("of = \"more\"", "of = 'a\" b'")
        ),
    );
    let unused = said(files);
    assert!(unused.contains(r#"of "a\" b" would silence"#), "{unused}");
    let place = said(with_rules(
        "@id(\"more\") forbid (principal, action == Action::\"case.note\", resource)\n\
         when { context.parameters.text == \"nobody\" }\nwhen { principal.model == \"nobody\" };",
    ));
    assert!(place.starts_with("rules/30-more.cedar:3:27: "), "{place}");
}

/// A delay lifts its rule by time, and what it does not lift is refused.
#[test]
fn a_delay_lifts_what_it_says() {
    let rule = |unless: &str| {
        found(with_rules(&format!(
            "@id(\"more\") @step_up(\"one-security\") @delay(\"30m\") forbid (principal, action == Action::\"session.end\", resource) \
             unless {{ {unless} }};"
        )))
    };
    let yes = "context.approvals.contains(StepUp::\"one-security\")";
    let none: [&str; 0] = [];
    assert_eq!(
        rule(&format!("{yes} || context.waited >= duration(\"30m\")")),
        none
    );
    // For some parameters alone is enough: people are told of it where it does.
    let some = format!(
        "{yes} || (context.waited >= duration(\"30m\") && context.task.age > duration(\"1h\"))"
    );
    assert_eq!(rule(&some), none);
    for unless in [
        yes.to_owned(),
        format!("{yes} && context.waited >= duration(\"30m\")"),
        "context.waited >= duration(\"30m\")".to_owned(),
    ] {
        assert!(rule(&unless).contains(&"remedy-never-lifts"), "{unless}");
    }
}

/// A delay that shortens no request's list of profiles is a finding.
#[test]
fn a_delay_that_changes_nothing_is_found() {
    let rules = |of_two: &str| {
        with_rules(&format!(
            "@id(\"one\") @step_up(\"one-security\") forbid (principal, action == Action::\"session.end\", resource) \
             unless {{ context.approvals.containsAny([StepUp::\"one-security\", StepUp::\"two-security\"]) }}; \
             @id(\"two\") @step_up(\"{of_two}\") @delay(\"30m\") forbid (principal, action == Action::\"session.end\", resource) \
             unless {{ context.approvals.containsAll([{}]) || context.waited >= duration(\"30m\") }};",
            of_two
                .split(" + ")
                .map(|name| format!("StepUp::\"{name}\""))
                .collect::<Vec<_>>()
                .join(", ")
        ))
    };
    assert_eq!(found(rules("two-security")), ["delay-changes-nothing"]);
    // Another rule asks the same people all the time.
    assert_eq!(found(rules("one-security")), ["delay-changes-nothing"]);
    let none: [&str; 0] = [];
    assert_eq!(found(rules("one-security + one-passkey")), none);
}

/// What an agent gets by waiting it gets without people.
#[test]
fn a_delay_is_no_person() {
    let mut files = soc_files();
    let schema = files.get_mut("schema.cedarschema").expect("schema");
    let account = "@undo(\"Sign in again.\")";
    assert!(schema.contains(account));
    *schema = schema.replacen(
        "@reversible(\"reversible\")\n@undo(\"Sign in again.\")",
        "@reversible(\"irreversible\")",
        1,
    );
    let asked = "@id(\"more\") @step_up(\"one-security\") @delay(\"30m\") forbid (principal, action == Action::\"session.end\", resource) \
        unless { context.approvals.contains(StepUp::\"one-security\") || context.waited >= duration(\"30m\") };";
    files.insert("rules/30-more.cedar".to_owned(), asked.to_owned());
    assert!(found(files).contains(&"irreversible-alone"));
}
