//! Untrusted text of a card, from gRPC to the terminal.

use std::collections::BTreeSet;
use std::time::Duration;

use dipylon_sdk::client::{AgentClient, OpenTaskRequest, TokenOutcome, TokenRequest};
use dipylon_sdk::model::text::needs_escape;
use dipylon_sdk::model::*;
use serde_json::json;
use tokio::process::Command;

use super::{TRICKS, assert_layout_is_intact, text};
use crate::support::served_broker::ServedBroker;
use crate::support::{DOMAIN, IDP, action};

/// Hostile purpose, reason, parameters and policy texts, from gRPC to the terminal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn untrusted_text_end_to_end() {
    let served = ServedBroker::start().await;
    let mut files = served.env.policy_with("schema.cedarschema", |schema| {
        let note = "end_sessions: Bool,\n      @title(\"Your n\u{43e}te\")\n      note?: String,\n      owner?: String,";
        let schema = schema.replacen("end_sessions: Bool,", note, 1);
        schema.replacen("\"Disable an account\"", "\"Dis\u{430}ble an account\"", 1)
    });
    let entities = &files["entities.json"];
    let wild = json!(TRICKS).to_string();
    let entities = entities.replacen("\"Ann Archer\"", &wild, 1);
    files.insert("entities.json".to_owned(), entities);
    served
        .operator("olga")
        .apply_policy_bundle(&files)
        .await
        .expect("in force");

    let agent = AgentClient::new(served.endpoint(), served.evidence("triage"), None);
    let opening = OpenTaskRequest {
        purpose: TRICKS.into(),
        max_duration_s: 600,
        idempotency_key: None,
        heartbeat_s: None,
    };
    let task = agent.open_task(&opening).await.expect("opens");
    let order = TokenRequest {
        action: action(
            "account.disable",
            "Account",
            "ann",
            IDP,
            &[
                ("end_sessions", Param::Bool(true)),
                ("note", Param::Str(TRICKS.to_owned())),
                ("owner", text("Nobody (nobody)")),
            ],
        ),
        ttl_s: 300,
        reason: TRICKS.into(),
        idempotency_key: Some("r-1".into()),
        wait_s: 0,
        executor: None,
        recommendation: None,
    };
    let pending = match task.request_token(&order).await {
        Ok(TokenOutcome::Pending(pending)) => pending,
        other => panic!("not pending: {other:?}"),
    };
    let id = pending.access_request_id().to_string();
    let phrase = pending.match_phrase().to_string();

    let home = tempfile::tempdir().expect("dir");
    let key = home.path().join("maria.pem");
    std::fs::write(&key, served.env.pem_of("maria")).expect("key");
    restrict(&key);
    let run = async |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dipylon"));
        command
            .args(args)
            .env("DIPYLON_URL", &served.url)
            .env("DIPYLON_KEY", &key)
            .env("DIPYLON_REALM", "test")
            .env("HOME", home.path())
            .kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(60), command.output());
        let output = output.await.expect("in time").expect("runs");
        let stdout = String::from_utf8(output.stdout).expect("text");
        let aside = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {aside}{stdout}");
        stdout
    };

    let shown = run(&["show", &id]).await;
    assert_layout_is_intact(&shown, 80);
    for part in [
        phrase.as_str(),
        "with note",
        "with owner",
        "target name",
        "<U+202E>",
        "<U+000A>",
        "<U+001B>",
        "<U+200B>",
        "MIXED SCRIPTS",
        "Dana",
        "in prod",
        "no history yet",
        DOMAIN,
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    let inbox = run(&["inbox"]).await;
    assert!(!inbox.contains(|c| c != '\n' && needs_escape(c)), "{inbox}");
    assert!(
        inbox.contains(&phrase) && inbox.contains("triage (dana)"),
        "{inbox}"
    );
    assert!(inbox.contains("[!]"), "the headline is suspect: {inbox}");
    assert_eq!(
        inbox.lines().filter(|line| line.contains("areq_")).count(),
        1,
        "{inbox}"
    );

    let machine: serde_json::Value =
        serde_json::from_str(&run(&["show", &id, "--json"]).await).expect("JSON");
    assert_eq!(machine["match_phrase"], json!(phrase));
    assert_eq!(
        machine["agent_says_unverified"]["purpose"],
        json!(TRICKS),
        "as it came"
    );

    let approved = run(&["approve", &id, "--yes", "--ttl", "60s", "--uses", "1"]).await;
    let (card, message) =
        approved.split_at(approved.find("your approval is recorded").expect("voted"));
    assert_layout_is_intact(card.trim_end_matches('\n'), 80);
    assert!(message.contains("is approved"), "{message}");
    let rows_of = |card: &str| -> Vec<String> {
        let lines = card
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty());
        // Relative times change.
        lines
            .filter(|line| !line.contains("left") && !line.contains(" ago"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(
        rows_of(card),
        rows_of(&shown),
        "`approve` shows the same card as `show`"
    );
    crate::support::invariants::check(&served.dir);
}

/// Private key files must be readable by their owner only.
fn restrict(key: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).expect("mode");
}

/// Values that look alike are told apart in the rows of the inbox, on cards and in sentences.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_told_apart_on_every_surface() {
    let served = ServedBroker::start().await;
    let mut files = served.env.policy_with("schema.cedarschema", |schema| {
        let note = "end_sessions: Bool,\n      note?: String,";
        schema.replacen("end_sessions: Bool,", note, 1)
    });
    let entities = &files["entities.json"];
    let entities = entities.replacen("\"ann\"", "\"ann [LOW RISK] on\"", 1);
    files.insert("entities.json".to_owned(), entities);
    let olga = served.operator("olga");
    olga.apply_policy_bundle(&files).await.expect("in force");
    let agent = AgentClient::new(served.endpoint(), served.evidence("triage"), None);
    let opening = OpenTaskRequest {
        purpose: "told apart\" and approved".into(),
        max_duration_s: 600,
        idempotency_key: None,
        heartbeat_s: None,
    };
    let task = agent.open_task(&opening).await.expect("opens");
    let long = "a".repeat(3_000);
    let mut notes = vec!["\u{200b}".to_owned(), "<U+200B>".to_owned()];
    notes.extend([format!("{long}1"), format!("{long}2")]);
    let mut ids = Vec::new();
    for (n, note) in notes.iter().enumerate() {
        let parameters = [("end_sessions", Param::Bool(true)), ("note", text(note))];
        let order = TokenRequest {
            action: action(
                "account.disable",
                "Account",
                "ann [LOW RISK] on",
                IDP,
                &parameters,
            ),
            ttl_s: 300,
            reason: "r".into(),
            idempotency_key: Some(format!("r-{n}")),
            wait_s: 0,
            executor: None,
            recommendation: None,
        };
        match task.request_token(&order).await {
            Ok(TokenOutcome::Pending(pending)) => ids.push(pending.access_request_id().to_string()),
            other => panic!("not pending: {other:?}"),
        }
    }

    let home = tempfile::tempdir().expect("dir");
    let key = home.path().join("maria.pem");
    std::fs::write(&key, served.env.pem_of("maria")).expect("key");
    restrict(&key);
    let run = async |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dipylon"));
        command
            .args(args)
            .env("DIPYLON_URL", &served.url)
            .env("DIPYLON_KEY", &key)
            .env("HOME", home.path())
            .kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(60), command.output());
        let output = output.await.expect("in time").expect("runs");
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let inbox = run(&["inbox"]).await;
    for cell in [
        "note=\"<U+200B>\"",
        "note=\"<U+003C>U+200B>\"",
        "<+ of 3001 characters, SHA-256 ",
    ] {
        assert!(inbox.contains(cell), "{cell}:\n{inbox}");
    }
    let listed = served.approver("maria").inbox().await.expect("reads").rows;
    let rows: BTreeSet<_> = listed
        .iter()
        .map(|row| format!("{:?}", row.parameters))
        .collect();
    assert_eq!(rows.len(), notes.len(), "{rows:?}");
    let groups: BTreeSet<_> = listed.iter().map(|row| &row.group).collect();
    assert_eq!(
        groups.len(),
        notes.len(),
        "different parameters are not one group"
    );

    let folded = run(&["request", "show", &ids[2]]).await;
    assert!(folded.contains("~ … 3001 characters, SHA-256"), "{folded}");
    assert!(
        folded.contains("--full") && folded.len() < 5_000,
        "{folded}"
    );
    let full = run(&["request", "show", &ids[2], "--full"]).await;
    assert!(
        full.matches('a').count() > 3_000 && !full.contains("--full"),
        "{full}"
    );

    // Sentences quote an id that is more than a name.
    let quoted = "account.disable on Account::\"ann [LOW RISK] on\"";
    let explained = olga.explain(&ids[0]).await.expect("explains");
    assert!(
        explained.headline.ends_with(quoted),
        "{}",
        explained.headline
    );
    let explained = olga
        .explain(&task.id().to_string())
        .await
        .expect("explains");
    let lines: Vec<_> = explained
        .lines
        .iter()
        .map(|line| line.text.as_str())
        .collect();
    assert!(lines.iter().any(|line| line.contains(quoted)), "{lines:?}");
    assert!(
        lines.contains(&"\"told apart\\\" and approved\""),
        "{lines:?}"
    );
}
