//! Votes by registered keys: for which actions they count, and the rules that would ask for others.

use super::*;

/// The soc bundle with a rule of this scope that asks `one-security`, which takes keys, for an approval.
fn asked_by_key(scope: &str) -> Result<PolicyBundle, BundleError> {
    soc_and(&format!(
        "// The rule begins on line 2.\n@id(\"ask\") @step_up(\"one-security\") forbid ({scope}) \
         unless {{ context.approvals.contains(StepUp::\"one-security\") }};"
    ))
}

const REFUSED: &str = "rules/30-more.cedar:2: rule \"ask\" may ask profile one-security, which takes votes by key, for ";

#[test]
fn rules_that_ask_keys_for_high_risk_are_refused() {
    for scope in [
        "principal, action == Action::\"host.isolate\", resource",
        "principal, action in Action::\"host.isolate\", resource",
        "principal, action in Action::\"severe\", resource",
        // A group of groups.
        "principal, action in Action::\"write\", resource",
        "principal, action in [Action::\"read\", Action::\"write\"], resource",
        "principal, action, resource",
        "principal, action, resource is Host",
        "principal, action, resource == Host::\"web-1\"",
        "principal in AgentGroup::\"soc\", action, resource is Host",
    ] {
        let why = asked_by_key(scope).expect_err(scope).to_string();
        for part in [
            REFUSED,
            "\"host.isolate\" (high risk)",
            "; a vote by key counts only below high risk",
        ] {
            assert!(why.contains(part), "{scope}: {why}");
        }
    }
    for advice in [
        "`key_votes_below`",
        "write method = \"passkey\" in [profile.one-security] of people.toml",
        "name a profile of passkeys in @step_up",
        "narrow the rule's scope to actions of lower @risk",
    ] {
        refused(asked_by_key("principal, action, resource"), advice);
    }
}

#[test]
fn rules_that_cannot_ask_keys_for_high_risk_are_accepted() {
    for scope in [
        "principal, action == Action::\"account.disable\", resource",
        "principal, action in Action::\"destructive\", resource",
        "principal, action in [Action::\"read\", Action::\"case.note\"], resource",
        // No action of high risk is done to a log.
        "principal, action, resource is LogSource",
        "principal, action, resource == Case::\"INC-8841\"",
    ] {
        if let Err(error) = asked_by_key(scope) {
            panic!("{scope}: {error}");
        }
    }
    soc_and(
        "@id(\"ask\") @step_up(\"one-security\") forbid (principal, action == Action::\"operate\", resource)
         when { context.evidence.verified_age > duration(\"1h\") };",
    )
    .expect("no approval lifts it");
    let unused = "[profile.unused]\ngroup = \"security\"\nwait = \"5m\"\ngood_for = \"5m\"\nmethod = \"key\"\n\n[approvals]";
    soc_with("people.toml", "[approvals]", unused).expect("no rule uses the profile");
    soc_and(
        "@id(\"ask\") @step_up(\"one-passkey\") forbid (principal, action in [Action::\"read\", Action::\"write\"], resource)
         unless { context.approvals.contains(StepUp::\"one-passkey\") };",
    )
    .expect("passkeys are taken for every action");
    soc_and(
        "@id(\"short\") @max_ttl(\"5m\") forbid (principal, action in [Action::\"read\", Action::\"write\"], resource)
         unless { context.ttl <= duration(\"5m\") };",
    )
    .expect("no approval is asked for");
}

#[test]
fn an_action_without_a_risk_counts_as_high() {
    let line = soc()
        .rule("destructive-needs-approval")
        .expect("a rule")
        .line;
    refused(
        soc_with("schema.cedarschema", "@risk(\"medium\")\n", ""),
        &format!(
            "rules/20-guardrails.cedar:{line}: rule \"destructive-needs-approval\" may ask profile one-security, which takes votes by \
             key, for \"account.disable\" (no @risk, which counts as high)"
        ),
    );
}

#[test]
fn key_votes_below_is_a_risk() {
    let below = |risk: &str| {
        let to = format!("key_votes_below = {risk}");
        soc_with("people.toml", "key_votes_below   = \"high\"", &to)
    };
    for risk in ["\"low\"", "\"medium\""] {
        refused(below(risk), "\"account.disable\" (medium risk)");
        refused(below(risk), "; a vote by key counts only below");
    }
    for wrong in ["\"any\"", "\"\"", "\"High\"", "\"highest\""] {
        refused(
            below(wrong),
            "approvals: key_votes_below: must be \"low\", \"medium\" or \"high\"",
        );
    }
    refused(below("3"), "approvals: key_votes_below: must be text");
    let text = soc_files()["people.toml"].clone();
    let line = text
        .lines()
        .find(|line| line.starts_with("key_votes_below"))
        .expect("a line");
    let default = soc_with("people.toml", line, "").expect("a bundle");
    assert_eq!(default.approval_limits().key_votes_below, Risk::High);
}

/// Every profile, action and limit: a key's vote is taken only from a profile of keys, below the limit.
#[test]
fn vote_method_by_risk() {
    // No rule asks for a profile: any limit makes a bundle.
    let rules = soc_files()["rules/10-agents.cedar"].clone();
    let bundle = |below: Risk| {
        let mut files = soc_files();
        files.retain(|path, _| path != "rules/20-guardrails.cedar");
        files.insert("rules/10-agents.cedar".to_owned(), rules.clone());
        let people = files.get_mut("people.toml").expect("people");
        let limit = format!("key_votes_below   = \"{}\"", below.as_str());
        *people = people.replace("key_votes_below   = \"high\"", &limit);
        let schema = files.get_mut("schema.cedarschema").expect("schema");
        *schema = schema.replacen("@risk(\"low\")\n", "", 1);
        load(files).unwrap_or_else(|e| panic!("{e}"))
    };
    let profile = |bundle: &PolicyBundle, name: &str| {
        let name = ProfileName::parse(name).expect("name");
        bundle.profile(&name).expect("a profile").clone()
    };
    for (below, by_key) in [
        (Risk::Low, &[][..]),
        (Risk::Medium, &["case.note"]),
        (Risk::High, &["case.note", "account.disable"]),
    ] {
        let bundle = bundle(below);
        let of_keys = profile(&bundle, "one-security");
        for name in [
            // Its risk is not declared.
            "case.read",
            "case.note",
            "account.disable",
            "host.isolate",
            "no.such",
        ] {
            let action = ActionName::parse(name).expect("name");
            let expected = match by_key.contains(&name) {
                true => VoteMethod::Key,
                false => VoteMethod::Passkey,
            };
            assert_eq!(bundle.vote_method(&of_keys, &action), expected, "{name}");
            for passkeys in ["one-passkey", "two-security"] {
                let profile = profile(&bundle, passkeys);
                let method = bundle.vote_method(&profile, &action);
                assert_eq!(method, VoteMethod::Passkey, "{name} under {passkeys}");
            }
        }
    }
}
