//! Schema and entities: parameters, targets and their attributes.

use super::*;
use crate::model::Reversibility;

#[test]
fn nested_parameters_are_typed() {
    let bundle = soc_with(
        "schema.cedarschema",
        "text: String,",
        "text: String, tags?: Set<String>, where?: { line: Long, column?: Long },",
    )
    .expect("bundle");
    let with = |name, param| {
        action(
            "case.note",
            "Case::INC-8841",
            &[("text", Param::Str("x".into())), (name, param)],
        )
    };
    let record = |members: &[(&str, Param)]| {
        Param::Record(
            members
                .iter()
                .map(|(n, p)| ((*n).to_owned(), p.clone()))
                .collect(),
        )
    };
    let good = [
        with(
            "tags",
            Param::Set(vec![Param::Str("a".into()), Param::Str("b".into())]),
        ),
        with("tags", Param::Set(vec![])),
        with("where", record(&[("line", Param::Int(1))])),
    ];
    for a in good {
        assert!(bundle.check_action(&a).is_ok());
        assert!(
            summary(&authorize(&bundle, &a, 60, &[])).starts_with("allowed"),
            "{}",
            summary(&authorize(&bundle, &a, 60, &[]))
        );
    }
    let message = |a: Action| bundle.check_action(&a).expect_err("refused").to_string();
    assert!(
        message(with("tags", Param::Set(vec![Param::Int(1)])))
            .ends_with("`tags`: expected text, got an integer")
    );
    assert!(message(with("where", record(&[]))).contains("`where.line` is missing: expected "));
    assert!(
        message(with(
            "where",
            record(&[("line", Param::Int(1)), ("x", Param::Int(1))])
        ))
        .contains("`where.x` is not")
    );
}

#[test]
fn target_attributes_as_text() {
    let bundle = soc();
    let facts = bundle
        .target_attributes(&Target::parse_pair("Account::ann").expect("target"))
        .expect("known");
    let expected = [
        ("environment", "Environment::prod"),
        ("name", "Ann Archer"),
        ("protected", "false"),
    ];
    assert_eq!(facts, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert_eq!(
        bundle.target_attributes(&Target::parse_pair("Account::zoe").expect("target")),
        None
    );
}

#[test]
fn schema_validation_errors() {
    let schema = |from: &str, to: &str| soc_with("schema.cedarschema", from, to);
    let more = |member: &str| {
        schema(
            "context: { parameters: {",
            &format!("context: {{ {member}, parameters: {{"),
        )
    };
    refused(
        more("ttl: duration"),
        "context declares ttl: every action has it; write context: { parameters: { … } }",
    );
    refused(
        more("depth: Long"),
        "context declares depth: parameters belong into `parameters`; write",
    );
    refused(
        schema("context: { parameters: {", "context: { paramters: {"),
        "(did you mean \"parameters\"?)",
    );
    refused(
        schema("context: { parameters: {", "context: { parameters?: {"),
        "parameters must not be optional",
    );
    refused(
        schema("end_sessions: Bool", "end_sessions: decimal"),
        "parameter end_sessions: must be String, Bool",
    );
    refused(
        schema("end_sessions: Bool", "end_sessions: Account"),
        "not Account",
    );
    refused(
        schema("text: String", "text: { @sensitive a: String }"),
        "@sensitive belongs on the whole parameter",
    );
    refused(
        schema("@sensitive\n", "@sensitiv\n"),
        "unknown annotation @sensitiv (did you mean \"sensitive\"?)",
    );
    refused(
        schema("@single_use\n", "@singleuse\n"),
        "unknown annotation @singleuse (did you mean \"single_use\"?)",
    );
    refused(
        schema("@single_use\n", "@single_use(\"no\")\n"),
        "@single_use takes no text",
    );
    refused(
        schema("{ parameters: {\n", "{ @sensitive parameters: {\n"),
        "parameters takes no annotations",
    );
    refused(
        schema(
            "entity Host = {",
            "type T = { @secret a: { b: Long } };\nentity Host = {",
        ),
        "type T: a: unknown annotation @secret",
    );
    refused(
        schema(
            "entity Host = {",
            "entity Host = {\n  x: { @sensitive y: String },",
        ),
        "entity Host: x.y: unknown annotation @sensitive",
    );
    refused(schema("@risk(\"low\")", "@risk(\"tiny\")"), "@risk must be");
    refused(
        schema("principal: [Agent]", "principal: [Agent, Person]"),
        "must have principal: [Agent]",
    );
    refused(
        schema("resource: [Case]", "resource: [Environment]"),
        "must be an entity type that this schema declares",
    );
    refused(
        schema("entity Host", "@colour(\"red\") entity Host"),
        "entity Host: unknown annotation @colour",
    );
    refused(
        schema("entity Host = {", "entity Agent;\nentity Host = {"),
        "\"Agent\" is already declared",
    );
    refused(
        schema("entity Host = {", "type duration = Long;\nentity Host = {"),
        "\"duration\"",
    );
    refused(
        schema("entity Host = {", "action operate;\nentity Host = {"),
        "\"operate\" is already declared",
    );
    refused(
        schema(
            "entity Host = {",
            "namespace X { entity Y; }\nentity Host = {",
        ),
        "namespace \"X\"",
    );
    refused(
        schema("entity Host = {", "entity Host = "),
        "schema.cedarschema:",
    );
    refused(schema("\"case.read\"", "\"case read\""), "its name must be");
    refused(
        schema("@reversible(\"reversible\")", "@reversible(\"maybe\")"),
        "@reversible must be \"nothing-changes\", \"reversible\", \"recoverable\" or \"irreversible\", not \"maybe\"",
    );
    refused(
        schema("entity Host = {", "action irreversible;\nentity Host = {"),
        "\"irreversible\" is already declared",
    );
}

#[test]
fn entities_are_targets_only() {
    let entities = |from: &str, to: &str| soc_with("entities.json", from, to);
    let more = |entity: &str| entities("[\n", &format!("[\n{entity},"));
    refused(
        more(r#"{"uid": {"type": "Agent", "id": "x"}, "attrs": {}, "parents": []}"#),
        "Agent::x: holds only entities",
    );
    refused(
        more(r#"{"uid": {"type": "Action", "id": "case.read"}, "attrs": {}, "parents": []}"#),
        "Action::case.read",
    );
    refused(
        more(r#"{"uid": {"type": "Acount", "id": "x"}, "attrs": {}, "parents": []}"#),
        "(did you mean \"Account\"?)",
    );
    refused(
        more(r#"{"uid": {"type": "Host", "id": "a\u200bb"}, "attrs": {}, "parents": []}"#),
        "invisible",
    );
    let twice = r#"{"uid": {"type": "Host", "id": "web-1"}, "parents": [],
        "attrs": {"name": "web-1.prod.soc.example", "environment": {"type": "Environment", "id": "prod"}}}"#;
    refused(more(twice), "Host::web-1: is listed twice");
    refused(
        entities("\"protected\": false", "\"protected\": \"no\""),
        "entities.json: ",
    );
    refused(
        entities("\"protected\": false", "\"protcted\": false"),
        "entities.json: ",
    );
    refused(
        entities(
            "\"protected\": false",
            "\"protected\": false, \"protected\": true",
        ),
        "duplicate member",
    );
}

/// A rule that names `Action::"irreversible"` is about those actions alone, and not about what shares a group with them.
#[test]
fn every_action_is_in_the_group_of_its_own_degree_alone() {
    let bundle = soc();
    let store = bundle.evaluator.store();
    for action in bundle.actions() {
        let uid = store.uid("Action", action.name.as_str()).expect("uid");
        for degree in Reversibility::ALL {
            let group = store.uid("Action", degree.as_str()).expect("uid");
            let is_in = store.is_ancestor(&group, &uid);
            assert_eq!(
                is_in,
                degree == action.reversibility(),
                "{} in {}",
                action.name,
                degree.as_str()
            );
        }
    }
    for group in ["read", "write", "destructive"] {
        let uid = store.uid("Action", group).expect("uid");
        let degrees = Reversibility::ALL.map(|degree| store.uid("Action", degree.as_str()));
        assert!(
            !degrees
                .iter()
                .flatten()
                .any(|degree| store.is_ancestor(degree, &uid)),
            "{group}"
        );
    }
    let inside = soc_with(
        "schema.cedarschema",
        "action \"case.note\" in [\"write\"]",
        "action \"case.note\" in [\"case.read\"]",
    );
    refused(
        inside,
        "\"case.note\" is in \"case.read\", whose @reversible is \"nothing-changes\", and its own is \"reversible\"",
    );
}

#[test]
fn no_agent_may_have_an_action_that_is_never_done() {
    let never = soc_with(
        "schema.cedarschema",
        "@title(\"Isolate a host\")",
        "@never\n@title(\"Isolate a host\")",
    );
    refused(never, "\"host.isolate\" is marked @never in the catalogue");
}
