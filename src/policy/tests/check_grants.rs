//! The check of what agents can have: approvals that nobody is asked for, audiences, quorums together, and attributes of targets.

use super::check::{found, said, with_rules};
use super::*;

fn replaced(
    files: &BTreeMap<String, String>,
    path: &str,
    from: &str,
    to: &str,
) -> BTreeMap<String, String> {
    let mut files = files.clone();
    let text = files.get_mut(path).expect("a file");
    assert!(text.contains(from), "{path}: {from}");
    *text = text.replacen(from, to, 1);
    files
}

const GUARDS: &str = "rules/20-guardrails.cedar";

/// Nobody is asked by a forbid without a remedy, and no approval is under a profile that no remedy asks for at the action.
#[test]
fn approvals_that_nobody_is_asked_for_are_found() {
    let soc = soc_files();
    for (of, remedy) in [
        (
            "destructive-needs-approval",
            "@step_up(\"one-security\")\nforbid (principal, action in Action::\"destructive\"",
        ),
        (
            "access-takes-two",
            "@step_up(\"two-security\")\nforbid (principal, action in Action::\"access\"",
        ),
    ] {
        let without = remedy.split_once('\n').expect("two lines").1;
        let said = said(replaced(&soc, GUARDS, remedy, without));
        assert!(
            said.contains(&format!(
                "rule \"{of}\": an approval would lift it, and nobody is ever asked for one"
            )),
            "{said}"
        );
        assert!(said.contains("[approval-unasked]"), "{said}");
    }
    let unasked = [
        "forbid (principal, action == Action::\"session.end\", resource) when { context.approvals.isEmpty() }",
        "forbid (principal, action == Action::\"session.end\", resource) when { resource.protected == false } \
         unless { context.approvals.contains(StepUp::\"two-security\") }",
    ];
    for rule in unasked {
        let found = found(with_rules(&format!("@id(\"more\") {rule};")));
        assert!(found.contains(&"approval-unasked"), "{rule}: {found:?}");
    }
    // Asked for elsewhere, and not at this action.
    let elsewhere = "@id(\"more\") @step_up(\"two-security\") forbid (principal, action == Action::\"group.add\", resource) \
         unless { context.approvals.containsAll([StepUp::\"two-security\", StepUp::\"one-passkey\"]) };";
    let elsewhere = found(with_rules(elsewhere));
    assert_eq!(elsewhere, ["remedy-never-lifts"]);
    let permit = replaced(
        &soc,
        "rules/10-agents.cedar",
        "when { principal.environment == resource.environment };",
        "when { principal.environment == resource.environment && context.approvals.contains(StepUp::\"one-passkey\") };",
    );
    let said = said(permit);
    assert!(
        said.contains("\"session.end\" to the agent \"responder\""),
        "{said}"
    );
    assert!(
        !said.contains("\"key.rotate\""),
        "its remedy asks for it: {said}"
    );
}

/// A guard by an approval is written as people write it.
#[test]
fn comparisons_with_true_and_false_have_a_direction() {
    for sound in [
        "when { context.approvals.contains(StepUp::\"two-security\") == false }",
        "unless { context.approvals.contains(StepUp::\"two-security\") == true }",
        "unless { true == context.approvals.contains(StepUp::\"two-security\") }",
        "unless { context.approvals.contains(StepUp::\"two-security\") != false }",
    ] {
        let rule = format!(
            "@id(\"more\") @step_up(\"two-security\") forbid (principal, action == Action::\"case.note\", resource) {sound};"
        );
        assert_eq!(found(with_rules(&rule)), Vec::<&str>::new(), "{sound}");
    }
    for wrong in [
        "when { context.approvals.contains(StepUp::\"two-security\") == true }",
        "unless { context.approvals.contains(StepUp::\"two-security\") != true }",
    ] {
        let rule = format!(
            "@id(\"more\") @step_up(\"two-security\") forbid (principal, action == Action::\"case.note\", resource) {wrong};"
        );
        let found = found(with_rules(&rule));
        assert!(found.contains(&"approval-forbids"), "{wrong}: {found:?}");
    }
}

/// An action is bound to an audience when every agent is, on every target.
#[test]
fn audiences_are_bound_for_every_agent_and_target() {
    let soc = soc_files();
    let bound = "forbid (principal, action == Action::\"logs.search\", resource)\nunless { context.audience == \"https://logs.soc.example\" };";
    for other in [
        "forbid (principal == Agent::\"responder\", action == Action::\"logs.search\", resource)\nunless { context.audience == \"https://logs.soc.example\" };",
        "forbid (principal, action == Action::\"logs.search\", resource)\nwhen { resource.personal }\nunless { context.audience == \"https://logs.soc.example\" };",
        "permit (principal == Agent::\"responder\", action == Action::\"logs.search\", resource)\nwhen { context.audience == \"https://logs.soc.example\" };",
        "forbid (principal, action == Action::\"logs.search\", resource)\nwhen { context.audience == \"https://vault.soc.example\" };",
    ] {
        let found = found(replaced(&soc, GUARDS, bound, other));
        assert_eq!(found, ["any-audience"], "{other}");
    }
    // By environment, and by what the target says.
    let by_environment = "forbid (principal, action == Action::\"logs.search\", resource)\n\
         unless { context.audience == (if resource.personal then \"https://vault.soc.example\" else \"https://logs.soc.example\") };";
    assert_eq!(
        found(replaced(&soc, GUARDS, bound, by_environment)),
        Vec::<&str>::new()
    );
    let mut none = soc.clone();
    let people = none.get_mut("people.toml").expect("people");
    let (head, rest) = people.split_once("[[validator]]").expect("validators");
    let tail = rest.find("[[auditor]]").expect("an auditor");
    *people = format!("{head}{}", &rest[tail..]);
    let guards = none.get_mut(GUARDS).expect("rules");
    let rules = guards
        .split("\n@id(")
        .filter(|rule| !rule.contains("context.audience"));
    *guards = rules.collect::<Vec<_>>().join("\n@id(");
    let said = said(none);
    assert!(said.contains("no validator is registered"), "{said}");
}

/// Profiles that a request needs together are filled by different people.
#[test]
fn quorums_together_take_different_people() {
    let soc = soc_files();
    let both = replaced(
        &soc,
        GUARDS,
        "unless { context.approvals.containsAny([StepUp::\"one-passkey\", StepUp::\"two-security\"]) };",
        "unless { context.approvals.contains(StepUp::\"one-passkey\") };",
    );
    let said = said(both.clone());
    assert!(
        said.contains("host.isolate of responder may need approvals under one-passkey and two-security together"),
        "{said}"
    );
    // One person more is enough.
    let more = "[[person]]\nid = \"kim\"\nname = \"Kim\"\ngroups = [\"security\"]\nroles = [\"approver\"]\n\n[[person]]\nid = \"maria\"";
    let enough = replaced(&both, "people.toml", "[[person]]\nid = \"maria\"", more);
    assert_eq!(found(enough), Vec::<&str>::new());
}

/// What a target says is among the values that a variable is compared with.
/// Neither owner approves a recommendation: what the executor's rules alone ask for has to be there for both agents.
#[test]
fn people_for_a_recommendation_are_others_than_both_owners() {
    let rule = "@id(\"executor\") @step_up(\"execution\") forbid (principal == Agent::\"responder\", action == Action::\"session.end\", resource) \
         unless { context.approvals.contains(StepUp::\"execution\") };";
    let mut files = with_rules(rule);
    let people = files.get_mut("people.toml").expect("people");
    people.push_str("\n[profile.execution]\ngroup = \"security\"\nquorum = 2\nwait = \"15m\"\ngood_for = \"10m\"\nmethod = \"passkey\"\n");
    let before = said(files.clone());
    assert!(!before.contains("recommended to"), "{before}");
    let agents = files.get_mut("agents.toml").expect("agents");
    *agents = agents.replace("owner = \"olga\" ", "owner = \"lee\" ");
    let said = said(files);
    assert!(
        said.contains("session.end of assistant recommended to responder may need approvals under"),
        "{said}"
    );
}

#[test]
fn attributes_of_targets_are_values() {
    let soc = soc_files();
    let host = |attribute: &str, values: [&str; 2], rule: &str| {
        let mut files = with_rules(&format!(
            "@id(\"more\") forbid (principal, action == Action::\"host.collect\", resource) {rule};"
        ));
        let schema = files.get_mut("schema.cedarschema").expect("schema");
        assert!(schema.contains("entity Host = {"));
        *schema = schema.replace("entity Host = {", &format!("entity Host = {{ {attribute},"));
        let name = attribute.split(':').next().expect("a name");
        let entities = files.get_mut("entities.json").expect("entities");
        for (host, value) in [("web-1.prod", values[0]), ("lab-7.staging", values[1])] {
            let from = format!("\"attrs\": {{ \"name\": \"{host}");
            assert!(entities.contains(&from), "{from}");
            *entities = entities.replacen(
                &from,
                &format!("\"attrs\": {{ \"{name}\": {value}, \"name\": \"{host}"),
                1,
            );
        }
        found(files)
    };
    let extension = |function: &str, argument: &str| {
        format!("{{ \"__extn\": {{ \"fn\": \"{function}\", \"arg\": \"{argument}\" }} }}")
    };
    let duration = |of: &str| extension("duration", of);
    let instant = |of: &str| extension("datetime", of);
    let none = Vec::<&str>::new();
    let (ten, five) = (duration("10m"), duration("5m"));
    let longest = |rule: &str| host("longest: duration", [&ten, &five], rule);
    assert_eq!(longest("when { context.ttl > resource.longest }"), none);
    assert_eq!(
        longest("when { context.evidence.issued_age > resource.longest }"),
        none
    );
    let (winter, spring) = (instant("2027-02-01"), instant("2027-05-01"));
    let frozen = |rule: &str| host("frozen_until: datetime", [&winter, &spring], rule);
    assert_eq!(frozen("when { context.now < resource.frozen_until }"), none);
    assert_eq!(
        frozen("when { context.now >= resource.frozen_until }"),
        none
    );
    // A profile is declared where the bundle has it.
    let lead = "{ \"__entity\": { \"type\": \"StepUp\", \"id\": \"two-security\" } }";
    let level = host(
        "level: StepUp",
        [lead, lead],
        "when { context.ttl > duration(\"1m\") }",
    );
    assert_eq!(level, none);
    // An audience that no validator has.
    let (idp, typo) = ("\"https://idp.soc.example\"", "\"https://idp.soc.exmaple\"");
    let service = host(
        "service: String",
        [idp, typo],
        "unless { context.audience == resource.service }",
    );
    assert!(service.contains(&"undeclared-name"), "{service:?}");
    let _known = soc;
}

/// What grows with the square of a rule is bounded.
#[test]
fn large_sets_take_little() {
    let labels: Vec<String> = (0..4_000).map(|n| format!("\"a{n}\"")).collect();
    let labels = labels.join(",");
    let mut files = with_rules(&format!(
        "@id(\"more\") forbid (principal, action == Action::\"case.note\", resource) when {{ context.parameters.labels.containsAny([{labels}]) }};"
    ));
    let schema = files.get_mut("schema.cedarschema").expect("schema");
    let (at, text) = (
        schema.find("action \"case.note\"").expect("an action"),
        "parameters: {",
    );
    let at = at + schema[at..].find(text).expect("parameters") + text.len();
    schema.insert_str(at, " @title(\"Labels\") labels: Set<String>, ");
    let told = found(files);
    assert!(told.iter().all(|check| *check == "undecided"), "{told:?}");
    let names = format!(
        "@id(\"more\") forbid (principal, action == Action::\"host.collect\", resource) when {{ [{labels}].contains(resource.name) }};"
    );
    assert!(found(with_rules(&names)).contains(&"undeclared-value"));
    let mut deep = soc_files();
    let schema = deep.get_mut("schema.cedarschema").expect("schema");
    schema.push_str(&format!("type Deep = {}A;\n", "A::".repeat(20_000)));
    assert!(said(deep).contains("a name has more than 16 parts"));
}

/// A rule about one target leaves the others: it is not one of every target.
#[test]
fn a_guard_of_one_target_excludes_no_action() {
    for condition in [
        "resource == Case::\"INC-8841\"",
        "[Case::\"INC-8841\"].contains(resource)",
    ] {
        let rule = format!(
            "@id(\"more\") forbid (principal, action in [Action::\"case.read\", Action::\"case.note\"], resource) when {{ {condition} }};"
        );
        assert_eq!(found(with_rules(&rule)), Vec::<&str>::new(), "{condition}");
    }
}

/// Audiences are asked for where a token could be: rules that close a request leave none, and those of one target leave the others.
#[test]
fn audiences_are_those_that_tokens_could_be_for() {
    let soc = soc_files();
    let bound = "forbid (principal, action == Action::\"logs.search\", resource)\nunless { context.audience == \"https://logs.soc.example\" };";
    let closed = "forbid (principal, action == Action::\"logs.search\", resource)\nwhen { !resource.personal }\nunless { context.audience == \"https://logs.soc.example\" };\n\n\
         @id(\"closed\")\nforbid (principal, action == Action::\"logs.search\", resource)\nwhen { resource.personal };";
    assert_eq!(
        found(replaced(&soc, GUARDS, bound, closed)),
        Vec::<&str>::new()
    );
    let one = "forbid (principal, action == Action::\"logs.search\", resource == LogSource::\"mail\")\nunless { context.audience == \"https://logs.soc.example\" };";
    assert_eq!(found(replaced(&soc, GUARDS, bound, one)), ["any-audience"]);
    let by_parameter = "forbid (principal, action == Action::\"logs.search\", resource)\n\
         unless { context.audience == \"https://logs.soc.example\" || context.audience == \"https://vault.soc.example\" && context.evidence.issued_age <= duration(\"1m\") };";
    assert_eq!(
        found(replaced(&soc, GUARDS, bound, by_parameter)),
        ["any-audience"]
    );
}

/// Every sample is tried, not only the first that a rule matches.
#[test]
fn approvals_behind_other_values_are_found() {
    let soc = soc_files();
    for (from, to) in [
        (
            "unless { context.parameters.minutes >= 1 && context.parameters.minutes <= 60 };",
            "unless { context.parameters.minutes >= 1 && context.parameters.minutes <= 60 && context.approvals.contains(StepUp::\"two-security\") };",
        ),
        (
            "unless { [\"log-reader\", \"helpdesk\", \"host-admin\"].contains(context.parameters.role) };",
            "unless { [\"log-reader\", \"helpdesk\"].contains(context.parameters.role) && context.approvals.contains(StepUp::\"two-security\") };",
        ),
    ] {
        let found = found(replaced(&soc, GUARDS, from, to));
        assert!(found.contains(&"approval-unasked"), "{to}: {found:?}");
    }
    let second = "@id(\"more\") forbid (principal, action == Action::\"session.end\", resource)\n\
         unless { resource == Account::\"ann\" || (resource == Account::\"cara\" && context.approvals.contains(StepUp::\"one-security\")) };";
    let found = found(with_rules(second));
    assert!(found.contains(&"approval-unasked"), "{found:?}");
}

#[test]
fn an_agent_that_never_operates_is_found() {
    let guard = |conditions: &str| {
        said(with_rules(&format!(
            "@id(\"more\") forbid (principal == Agent::\"reporter\", action == Action::\"operate\", resource) {conditions};"
        )))
    };
    let refused = guard("");
    assert!(
        refused.contains("never let the agent \"reporter\" operate")
            && refused.contains("\"more\" forbids it"),
        "{refused}"
    );
    let days = "when { context.now.toTime() >= duration(\"8h\") } when { context.evidence.issued_age < duration(\"1m\") }";
    assert_eq!(guard(days), "");
    let both = with_rules(
        "@id(\"day\") forbid (principal, action == Action::\"operate\", resource) when { context.now.toTime() >= duration(\"8h\") };\n\
         @id(\"night\") forbid (principal, action == Action::\"operate\", resource) when { context.now.toTime() < duration(\"9h\") };",
    );
    assert_eq!(found(both), ["cannot-operate"; 4]);
}

/// Which weekday a moment is depends on the year: a rule that names a moment and a weekday is decided about neither way.
#[test]
fn an_agent_that_operates_on_some_day_of_some_year_is_no_finding() {
    let zone = "[zone.berlin]\ntz = \"Europe/Berlin\"\n[zone.berlin.holidays]\n\"2026-12-25\" = \"a\"\n\"2026-12-26\" = \"b\"\n";
    for (hours, is_found) in [
        (
            "context.now < datetime(\"2026-06-01\") && context.local.berlin.weekday == \"saturday\"",
            false,
        ),
        (
            "context.local.berlin.holiday && context.local.berlin.weekday == \"saturday\"",
            false,
        ),
        (
            "context.local has berlin && context.local.berlin.holiday",
            false,
        ),
        (
            "context.local.berlin.weekday == \"saturday\" && context.local.berlin.weekday == \"sunday\"",
            true,
        ),
    ] {
        let mut files = with_rules(&format!(
            "@id(\"hours\") forbid (principal, action == Action::\"operate\", resource) unless {{ {hours} }};"
        ));
        files.insert("calendar.toml".to_owned(), zone.to_owned());
        let found = found(files);
        assert_eq!(
            found.contains(&"cannot-operate"),
            is_found,
            "{hours}: {found:?}"
        );
        assert!(!found.contains(&"undeclared-name"), "{hours}: {found:?}");
    }
}

/// Whole decisions are bounded, and what was not asked any more is said.
#[test]
fn what_whole_decisions_leave_out_is_said() {
    let mut files = with_rules(
        "@id(\"reads\") forbid (principal, action == Action::\"case.note\", resource) when { context.ttl > duration(\"59m\") && \
         (context.now < datetime(\"2026-02-01\") || context.local.berlin.time > duration(\"8h\")) };
         @id(\"asks\") @step_up(\"two-security\") forbid (principal, action == Action::\"case.note\", resource) \
         unless { context.approvals.contains(StepUp::\"two-security\") };",
    );
    let schema = files.get_mut("schema.cedarschema").expect("schema");
    let note = "@reversible(\"reversible\")\n@undo(\"Delete the note in the case system.\")";
    assert!(schema.contains(note), "{schema}");
    *schema = schema.replace(note, "@reversible(\"irreversible\")");
    files.insert(
        "calendar.toml".to_owned(),
        "[zone.berlin]\ntz = \"Europe/Berlin\"\n".to_owned(),
    );
    let people = files.get_mut("people.toml").expect("people");
    let audiences: String = (0..60)
        .map(|n| {
            format!("[[validator]]\nid = \"v-{n}\"\naudiences = [\"https://v-{n}.soc.example\"]\n")
        })
        .collect();
    *people = people.replacen("[[auditor]]", &format!("{audiences}[[auditor]]"), 1);
    let said = said(files);
    assert!(
        said.contains("was not decided for every action and agent"),
        "{said}"
    );
}

#[test]
fn forbids_that_together_exclude_an_action_are_found() {
    let two = |first: &str, second: &str| {
        found(with_rules(&format!(
            "@id(\"more-1\") forbid (principal, action == Action::\"privilege.grant\", resource) {first};\n\
             @id(\"more-2\") forbid (principal, action == Action::\"privilege.grant\", resource) {second};"
        )))
    };
    let audience =
        |name: &str| format!("unless {{ context.audience == \"https://{name}.soc.example\" }}");
    assert_eq!(two(&audience("idp"), &audience("vault")), ["never-granted"]);
    assert_eq!(two(&audience("idp"), &audience("idp")), Vec::<&str>::new());
    let minutes = |is: &str| format!("when {{ context.parameters.minutes {is} }}");
    assert_eq!(two(&minutes("<= 30"), &minutes("> 30")), ["never-granted"]);
    assert_eq!(two(&minutes("<= 30"), &minutes("> 31")), Vec::<&str>::new());
    // Alone with the hour of `roles-end-within-the-hour`.
    assert_eq!(two(&minutes("<= 60"), &audience("idp")), ["never-granted"]);
}

#[test]
fn an_irreversible_action_that_needs_no_person_by_day_is_found() {
    let night = |condition: &str| {
        let mut files = soc_files();
        let schema = files.get_mut("schema.cedarschema").expect("a file");
        *schema = schema.replacen(
            "@reversible(\"reversible\")\n@undo(\"Delete the note in the case system.\")",
            "@reversible(\"irreversible\")",
            1,
        );
        let rule = format!(
            "@id(\"more\") @step_up(\"one-passkey\") forbid (principal, action == Action::\"case.note\", resource) {condition}\n\
             unless {{ context.approvals.contains(StepUp::\"one-passkey\") }};"
        );
        files.insert("rules/30-more.cedar".to_owned(), rule);
        found(files)
    };
    assert_eq!(night(""), Vec::<&str>::new());
    assert_eq!(
        night("when { context.now.toTime() < duration(\"6h\") }"),
        ["irreversible-alone"]
    );
}
