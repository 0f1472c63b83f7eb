//! Named facts: how they are read, which rules read them, and what the check finds about them.

use super::check::{checked, found, found_among, said};
use super::*;

const DRILL: &str =
    "[fact.drill]\ntitle = \"A drill\"\nsafe = true\nnormal = false\nmax = \"1h\"\n";
const ON_CALL: &str =
    "[fact.on_call]\ntitle = \"Somebody is on call\"\nsafe = false\nmax = \"12h\"\n";

fn with(facts: &str, rules: &str) -> BTreeMap<String, String> {
    let mut files = soc_files();
    files.insert("facts.toml".to_owned(), facts.to_owned());
    files.insert("rules/30-more.cedar".to_owned(), rules.to_owned());
    files
}

/// A forbid of isolating hosts under this condition, beside one that reads both facts.
fn when(condition: &str) -> BTreeMap<String, String> {
    let rules = format!(
        "@id(\"more\") forbid (principal, action == Action::\"host.isolate\", resource) {condition};\n\
         @id(\"both\") forbid (principal, action == Action::\"session.end\", resource) when {{ context.facts.drill }} unless {{ context.facts.on_call }};"
    );
    with(&format!("{DRILL}\n{ON_CALL}"), &rules)
}

#[test]
fn facts_are_read_with_their_bounds() {
    let names = |files| {
        let bundle = checked(files).unwrap_or_else(|e| panic!("{e}"));
        let facts = bundle.facts();
        let facts = facts.map(|f| (f.name.to_string(), f.safe, f.normal, f.max_s, f.ends));
        facts.collect::<Vec<_>>()
    };
    let read = [
        ("drill".to_owned(), true, false, 3_600, false),
        ("on_call".to_owned(), false, false, 43_200, false),
    ];
    assert_eq!(names(when("when { context.facts.drill }")), read);
    for (from, to, rule) in [
        ("drill", "Drill", "lowercase letters"),
        ("drill", "if", "no word of Cedar's"),
        ("safe = true\n", "", "`safe` is required"),
        ("safe = true", "safe = \"yes\"", "must be true or false"),
        ("1h", "32d", "must be 1m to 31d"),
        ("1h", "59s", "must be 1m to 31d"),
        ("max = \"1h\"\n", "", "max is missing"),
        ("A drill", "", "title"),
        ("normal", "nromal", "nromal"),
    ] {
        let text = DRILL.replace(from, to);
        let rule_text = "@id(\"more\") forbid (principal, action == Action::\"host.isolate\", resource) when { context.facts.drill };";
        let said = said(with(&text, rule_text));
        assert!(
            said.contains("facts.toml:") && said.contains(rule),
            "{text}: {said}"
        );
    }
    let many: String = (0..9)
        .map(|n| DRILL.replace("drill", &format!("d{n}")))
        .collect();
    assert!(said(with(&many, "")).contains("at most 8 facts"));
}

/// The facts that a rule reads: by name, all of them where it reads them as a whole, none where it only asks whether there is one.
#[test]
fn what_a_rule_reads_is_known() {
    for (condition, read) in [
        ("when { context.facts.drill }", vec!["drill"]),
        (
            "unless { context[\"facts\"][\"on_call\"] }",
            vec!["on_call"],
        ),
        (
            "when { context.facts has drill && context.facts.drill }",
            vec!["drill"],
        ),
        (
            "when { context has facts && context has facts.drill && context.facts.drill }",
            vec!["drill"],
        ),
        (
            "when { (if context.facts.drill then principal else principal).model == \"m\" }",
            vec!["drill"],
        ),
        (
            "when { {a: context.facts}.a.drill }",
            vec!["drill", "on_call"],
        ),
        (
            "when { context.facts == {drill: true, on_call: false} }",
            vec!["drill", "on_call"],
        ),
        ("when { context.ttl > duration(\"1m\") }", vec![]),
    ] {
        let bundle = PolicyBundle::load(&BundleFiles::new(when(condition)).expect("files"));
        let bundle = bundle.unwrap_or_else(|e| panic!("{condition}: {e}"));
        let names = ["drill", "on_call"].map(|name| FactName::parse(name).expect("fact"));
        let of_more = names
            .iter()
            .filter(|name| bundle.rules_reading(name).contains(&"more".to_owned()));
        let of_more: Vec<&str> = of_more.map(|name| name.as_str()).collect();
        assert_eq!(of_more, read, "{condition}");
        // And the check comes to an end.
        let _findings = found(when(condition));
    }
}

/// Rules whose scope cannot match a request are not in its slice, and their facts are no part of it.
#[test]
fn facts_in_scope_are_those_of_the_rules_in_scope() {
    let bundle = checked(when("when { context.facts.drill }")).unwrap_or_else(|e| panic!("{e}"));
    let facts = |action: &str, kind: &str, id: &str| {
        let agent = AgentId::parse("triage").expect("agent");
        let name = ActionName::parse(action).expect("action");
        let target = Target::parse(kind, id).expect("target");
        let facts = bundle.facts_in_scope([&agent], &name, &target);
        facts
            .into_iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(facts("host.isolate", "Host", "web-1"), ["drill"]);
    assert_eq!(facts("session.end", "Account", "ann"), ["drill", "on_call"]);
    assert_eq!(facts("case.read", "Case", "INC-8841"), Vec::<String>::new());
}

#[test]
fn the_check_tries_both_values_and_knows_the_safe_one() {
    for (condition, expected) in [
        // What one operator alone sets only forbids more.
        ("when { context.facts.drill }", vec![]),
        ("unless { context.facts.on_call }", vec![]),
        ("when { context.facts.drill == true }", vec![]),
        (
            "when { context.facts has drill && context.facts.drill }",
            vec![],
        ),
        (
            "when { if context.facts.on_call then false else context.facts.drill }",
            vec![],
        ),
        ("when { context has facts && context.facts.drill }", vec![]),
        (
            "unless { context.facts == {drill: true, on_call: false} }",
            vec!["safe-allows"],
        ),
        ("unless { {f: context.facts}.f.drill }", vec!["safe-allows"]),
        ("unless { context.facts.drill }", vec!["safe-allows"]),
        ("when { context.facts.on_call }", vec!["safe-allows"]),
        (
            "when { context.facts.drill } when { !context.facts.drill }",
            vec!["never-matches"],
        ),
        (
            "when { context.facts.drill || !context.facts.drill }",
            vec!["always-true", "safe-allows"],
        ),
    ] {
        let names = [
            "safe-allows",
            "never-matches",
            "always-true",
            "undeclared-name",
        ];
        let findings = found_among(when(condition), &names);
        assert_eq!(findings, expected, "{condition}");
    }
    let permit = "@id(\"more\") permit (principal == Agent::\"reporter\", action == Action::\"case.read\", resource) when { context.facts.drill };";
    assert!(found(with(DRILL, permit)).contains(&"safe-allows"));
    let unread = with(
        &format!("{DRILL}\n{ON_CALL}"),
        "@id(\"more\") forbid (principal, action == Action::\"host.isolate\", resource) when { context.facts.drill };",
    );
    assert_eq!(found(unread), ["unread-fact"]);
    // Gate 1 reads none.
    let operate = "@id(\"more\") forbid (principal, action == Action::\"operate\", resource) when { context.facts.drill };";
    assert!(said(with(DRILL, operate)).contains("facts"));
}

/// However many facts rules read, each is tried with both values: a second audience under one of eight facts is found.
#[test]
fn each_of_many_facts_is_tried() {
    let facts: String = (0..8)
        .map(|n| ON_CALL.replace("on_call", &format!("f{n}")))
        .collect();
    let all: Vec<String> = (0..8).map(|n| format!("context.facts.f{n}")).collect();
    let all = format!(
        "@id(\"all\") forbid (principal, action == Action::\"logs.search\", resource) \
         when {{ context.ttl > duration(\"1m\") }} unless {{ {} }};",
        all.join(" || ")
    );
    for last in 0..8 {
        let mut files = with(&facts, &all);
        let guards = files.get_mut("rules/20-guardrails.cedar").expect("rules");
        let one = "context.audience == \"https://logs.soc.example\"";
        assert!(guards.contains(one));
        let other = "context.audience == \"https://cases.soc.example\"";
        *guards = guards.replace(one, &format!("{one} || context.facts.f{last} && {other}"));
        assert_eq!(found(files), ["any-audience"], "f{last}");
    }
}
