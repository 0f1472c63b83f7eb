//! Registered names that letter case alone tells apart: refused by `policy check` and at apply, with both lines.

use crate::support::TestEnvironment;
use crate::support::cli_deployment::CliDeployment;
use crate::support::served_broker::ServedBroker;

/// A table to add to a file, the name in it, and the registered name that it looks like.
const TABLES: &[(&str, &str, &str, &str)] = &[
    (
        "people.toml",
        "\n[[person]]\nid = \"Maria\"\nname = \"Another\"\nroles = [\"approver\"]\n",
        "person: id \"Maria\"",
        "[[person]]\nid = \"maria\"",
    ),
    (
        "people.toml",
        "\n[[person]]\nid = \"IDP\"\nname = \"A service?\"\nroles = [\"approver\"]\n",
        "validator: id \"idp\"",
        "[[person]]\nid = \"IDP\"",
    ),
    (
        "people.toml",
        "\n[[auditor]]\nid = \"Audit\"\n",
        "auditor: id \"Audit\"",
        "[[auditor]]\nid = \"audit\"",
    ),
    (
        "people.toml",
        "\n[[person]]\nid = \"nina\"\nname = \"Nina\"\ngroups = [\"Security\"]\nroles = [\"approver\"]\n",
        "person: group \"Security\"",
        "[[person]]\nid = \"dana\"",
    ),
    (
        "people.toml",
        "\n[profile.Other]\ngroup = \"SECURITY\"\nwait = \"15m\"\ngood_for = \"10m\"\nmethod = \"key\"\n",
        "profile Other: group \"SECURITY\"",
        "[[person]]\nid = \"dana\"",
    ),
    (
        "agents.toml",
        "\n[[agent]]\nid = \"Triage\"\nspiffe_id = \"spiffe://soc.example/agent/triage-2\"\nowner = \"dana\"\n\
         environment = \"Prod\"\nmodel = \"m\"\nautonomy = \"supervised\"\ngroups = [\"SOC\"]\nactions = []\n",
        "agent: id \"Triage\"",
        "[[agent]]\nid = \"triage\"",
    ),
];

/// The line, from 1, of a text in a file.
fn line(file: &str, text: &str) -> usize {
    let at = file.find(text).unwrap_or_else(|| panic!("no {text}"));
    file[..at].matches('\n').count() + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_letter_case_alone_tells_apart_are_refused() {
    let s = ServedBroker::start_in(TestEnvironment::new()).await;
    let site = CliDeployment::new();
    let mut files = s.env.policy.clone();
    for (file, table, _, _) in TABLES {
        files.get_mut(*file).expect("file").push_str(table);
    }
    let profile = "\n[profile.One-Security]\ngroup = \"security\"\nwait = \"15m\"\ngood_for = \"10m\"\nmethod = \"key\"\n";
    files
        .get_mut("people.toml")
        .expect("people")
        .push_str(profile);
    let schema = files.get_mut("schema.cedarschema").expect("schema");
    let at = schema.find("action \"case.read\"").expect("an action");
    let copy = schema[at..]
        .split_inclusive('\n')
        .take_while(|line| !line.trim().is_empty());
    let copy: String = copy.collect();
    schema.push('\n');
    schema.push_str(&copy.replacen("case.read", "Case.Read", 1));
    for (path, text) in &files {
        site.write(&format!("policy/{path}"), text);
    }
    let (code, checked, _) = site.run(&["policy", "check", "policy"]);
    assert_ne!(code, 0);
    let applied = s.operator("olga").apply_policy_bundle(&files).await;
    let applied = applied.expect_err("refused").to_string();
    let (people, agents) = (&files["people.toml"], &files["agents.toml"]);
    for (file, _, what, first) in TABLES {
        let expected = format!(
            " of line {} in letter case alone",
            line(&files[*file], first)
        );
        let found = checked.lines().find(|line| line.contains(what));
        let found = found.unwrap_or_else(|| panic!("no {what}: {checked}"));
        assert!(
            found.contains(&expected),
            "{what}: expected {expected}: {found}"
        );
        assert!(found.contains(&format!("{file}:")), "{found}");
    }
    for (place, what) in [
        (
            format!("people.toml:{}", line(people, "[[person]]\nid = \"Maria\"")),
            "\"Maria\" differs from \"maria\"",
        ),
        (
            format!("agents.toml:{}", line(agents, "[[agent]]\nid = \"Triage\"")),
            "environment \"Prod\" is not among `environments`",
        ),
        (
            format!("agents.toml:{}", line(agents, "[[agent]]\nid = \"Triage\"")),
            "group \"SOC\" differs from \"soc\"",
        ),
        ("people.toml:".to_owned(), "Security\" differs from"),
        ("schema.cedarschema:".to_owned(), "differs from"),
    ] {
        let is_it = |line: &&str| line.contains(&place) && line.contains(what);
        assert!(
            checked.lines().find(is_it).is_some(),
            "{place} {what}: {checked}"
        );
    }
    assert!(applied.contains("letter case alone"), "{applied}");
    // The bundle in force stays.
    let before = s.operator("olga").apply_policy_bundle(&s.env.policy).await;
    assert!(before.is_ok(), "{before:?}");
}
