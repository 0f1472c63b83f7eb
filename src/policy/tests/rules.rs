//! Rules: annotations, remedies and scopes that a bundle may have.

use super::*;

#[test]
fn rule_validation_errors() {
    let permit = "permit (principal, action, resource);";
    refused(
        soc_and(permit),
        "rules/30-more.cedar:1: the rule needs an @id",
    );
    refused(
        soc_and(&format!("\n\n@id(\"a b\") {permit}")),
        "rules/30-more.cedar:3: the rule's @id must be",
    );
    refused(
        soc_and(&format!("@id(\"a\") @stepup(\"one-security\") {permit}")),
        "rule \"a\": unknown annotation @stepup (did you mean \"step_up\"?)",
    );
    refused(
        soc_and(&format!("@id(\"writes-are-short\") {permit}")),
        "taken by the rule at rules/20-guardrails.cedar:6",
    );
    refused(
        soc_and(&format!("@id(\"a\") @max_ttl(\"5m\") {permit}")),
        "only a forbid may carry a remedy",
    );
    let forbid = "forbid (principal, action, resource);";
    refused(
        soc_and(&format!(
            "@id(\"a\") @max_ttl(\"5m\") @step_up(\"one-security\") {forbid}"
        )),
        "at most one remedy",
    );
    refused(
        soc_and(&format!("@id(\"a\") @max_ttl(\"0m\") {forbid}")),
        "@max_ttl must be",
    );
    refused(
        soc_and(&format!("@id(\"a\") @step_up(\"one-securty\") {forbid}")),
        "(did you mean \"one-security\"?)",
    );
    for (profiles, said) in [
        (
            "one-security + two-securty",
            "@step_up: \"two-securty\" is not a profile of people.toml (did you mean \"two-security\"?); expected profiles with \" + \" between them",
        ),
        (
            "one-security+two-security",
            "expected profiles with \" + \" between them",
        ),
        ("one-security + ", "expected profiles with"),
        (
            "one-security + one-security",
            "@step_up names one-security twice",
        ),
    ] {
        refused(
            soc_and(&format!("@id(\"a\") @step_up(\"{profiles}\") {forbid}")),
            said,
        );
    }
    for (annotations, said) in [
        ("@delay(\"30m\")", "@delay stands beside @step_up"),
        (
            "@max_ttl(\"5m\") @delay(\"30m\")",
            "@delay stands beside @step_up",
        ),
        (
            "@step_up(\"one-security\") @delay(\"59s\")",
            "@delay must be 1m to 24h",
        ),
        (
            "@step_up(\"one-security\") @delay(\"25h\")",
            "@delay must be 1m to 24h",
        ),
        (
            "@step_up(\"one-security\") @delay(\"soon\")",
            "@delay must be",
        ),
    ] {
        refused(soc_and(&format!("@id(\"a\") {annotations} {forbid}")), said);
    }
    let step_up = "@id(\"a\") @step_up(\"one-security\")";
    let of = "forbid (principal, action == Action::\"case.read\", resource) unless";
    for reading in [
        format!("{step_up} {of} {{ context.waited > duration(\"1m\") }};"),
        format!("{step_up} {of} {{ {{\"has\": context.waited}}[\"has\"] >= duration(\"1m\") }};"),
        format!("{step_up} {of} {{ {{\">=\": context.waited}}[\">=\"] >= duration(\"1m\") }};"),
        format!("{step_up} {of} {{ [context].contains(context) }};"),
        "@id(\"a\") permit (principal, action == Action::\"case.read\", resource) when { {c: context}.c.waited > duration(\"1m\") };"
            .to_owned(),
    ] {
        refused(
            soc_and(&reading),
            "context.waited is read by forbids with @delay alone",
        );
    }
    for comparison in [
        "context.waited >= duration(\"1m\")",
        "context.waited >= duration(\"1h\")",
        "context.waited > duration(\"30m\")",
        "duration(\"30m\") <= context.waited",
        "context.waited.toMinutes() >= 30",
        "context.waited >= duration(\"30m\") && context.waited < duration(\"1h\")",
    ] {
        refused(
            soc_and(&format!(
                "{step_up} @delay(\"30m\") {of} {{ {comparison} }};"
            )),
            "write context.waited >= duration(\"30m\")",
        );
    }
    soc_and(&format!(
        "{step_up} @delay(\"30m\") {of} {{ context.waited >= duration(\"30m\") }};"
    ))
    .expect("its own delay");
    refused(
        soc_and("@id(\"a\") permit (principal == ?principal, action, resource);"),
        "template",
    );
    refused(
        soc_and("@id(\"a\")\npermit (principal, action resource);"),
        "rules/30-more.cedar:2:27: ",
    );
    // What strict validation refuses: unknown actions, profiles, attributes, types that do not fit.
    for bad in [
        "forbid (principal, action == Action::\"account.delete\", resource);",
        "forbid (principal, action == Action::\"case.read\", resource)\nunless { context.approvals.contains(StepUp::\"one-securty\") };",
        "forbid (principal, action == Action::\"case.read\", resource)\nwhen { resource.enviroment == principal.environment };",
        "forbid (principal, action == Action::\"case.read\", resource)\nwhen { context.ttl > 10 };",
    ] {
        refused(
            soc_and(&format!("@id(\"a\")\n{bad}")),
            "rules/30-more.cedar:",
        );
    }
}

#[test]
fn ids_that_differ_in_normalization_alone_are_refused() {
    let target = |id: &str| {
        format!(
            "{{ \"uid\": {{ \"type\": \"Account\", \"id\": \"{id}\" }}, \"parents\": [],\n    \"attrs\": {{ \"name\": \"x\", \
             \"environment\": {{ \"type\": \"Environment\", \"id\": \"prod\" }}, \"protected\": true }} }},\n  "
        )
    };
    let with = |targets: &str, rule: &str| {
        let mut files = soc_files();
        let entities = files.get_mut("entities.json").expect("file");
        *entities = entities.replacen("[\n", &format!("[\n  {targets}"), 1);
        files.insert("rules/30-more.cedar".to_owned(), rule.to_owned());
        load(files)
    };
    let rule = |id: &str| {
        format!("@id(\"a\")\nforbid (principal, action, resource == Account::\"{id}\");\n")
    };
    let (composed, decomposed) = ("jos\u{e9}", "jose\u{301}");
    for id in [composed, decomposed] {
        with(&target(id), &rule(id)).unwrap_or_else(|e| panic!("{e}"));
        with(&target("jose"), &rule("jose")).unwrap_or_else(|e| panic!("{e}"));
    }
    let both = target(composed) + &target(decomposed);
    refused(
        with(&both, ""),
        "entities.json: Account::\"jose\u{301}\" is spelled in two ways",
    );
    refused(
        with(&both, ""),
        "here with U+0065 U+0301, elsewhere in this bundle with U+00E9",
    );
    refused(
        with(&target(composed), &rule(decomposed)),
        "rules/30-more.cedar:1: rule \"a\": Account::\"jose\u{301}\" is spelled in two ways",
    );
    refused(
        with(&target(decomposed), &rule(composed)),
        "here with U+00E9, elsewhere in this bundle with U+0065 U+0301",
    );
}
