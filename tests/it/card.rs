//! Approval card: the same rows on every surface, and untrusted text confined to its row.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dipylon_sdk::card::{
    self, AccessRequestStatus, AgentRegistration, Attestation, Card, History, PersonRef,
    ProfileProgress, Requester, RuleSummary,
};
use dipylon_sdk::client::{AgentClient, OpenTaskRequest, TokenOutcome, TokenRequest};
use dipylon_sdk::model::text::needs_escape;
use dipylon_sdk::model::*;
use proptest::prelude::*;
use serde_json::json;
use tokio::process::Command;

use super::golden::{golden, word};
use crate::support::served_broker::ServedBroker;
use crate::support::{DOMAIN, IDP, action};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Every trick of untrusted text: bidi, invisible characters, line breaks, terminal escapes, combining marks, confusables.
const WILD: &str = "x\u{202E}\u{2066}\u{200B}\u{FE0F}\u{E0041}\u{E000}\n  owner       Nobody (nobody)\r\n\u{1B}[2J\u{9B}31m\u{2028}  \
     needs  0 of 0\u{0}\u{335}\u{335}\u{335}\u{335} p\u{430}yp\u{430}l \u{FF41}dmin <b onclick=x>*_`@all ";

fn who(id: &str, name: &str) -> PersonRef {
    PersonRef {
        id: word(id, PersonId::parse),
        name: Some(name.to_owned()),
    }
}

fn need(name: &str, quorum: u32, approvers: Vec<PersonRef>, passkey: bool) -> ProfileProgress {
    ProfileProgress {
        profile: ProfileRef {
            name: word(name, ProfileName::parse),
            digest: Digest::sha256(name.as_bytes()),
        },
        group: "security".to_owned(),
        quorum,
        approvers,
        passkey,
    }
}

fn ordinary() -> Card {
    Card {
        access_request: AccessRequestId::from_random([1; 16]),
        status: AccessRequestStatus::Waiting,
        realm: word("soc", Realm::parse),
        title: "Disable an account".to_owned(),
        effect: "The account can no longer sign in.".to_owned(),
        reversible: "yes".to_owned(),
        undo: "Enable the account at the identity provider.".to_owned(),
        risk: Some(Risk::Medium),
        action: Some(Arc::new(crate::support::disable("ann"))),
        parameter_titles: [(
            "end_sessions".to_owned(),
            "Also end open sessions".to_owned(),
        )]
        .into(),
        target_attributes: Some(vec![
            ("environment".to_owned(), "prod".to_owned()),
            ("name".to_owned(), "Ann Archer".to_owned()),
            ("protected".to_owned(), "false".to_owned()),
        ]),
        agent: Requester {
            id: word("triage", AgentId::parse),
            owner: who("dana", "Dana Ruiz"),
            registered: Some(AgentRegistration {
                environment: "prod".to_owned(),
                model: "example-large-2".to_owned(),
                autonomy: "supervised".to_owned(),
            }),
        },
        verified: Attestation {
            kind: "jwt-svid".to_owned(),
            subject: word("spiffe://soc.example/agent/triage", SpiffeId::parse),
            verified_at: NOW.plus_secs(-12),
            expires_at: NOW.plus_secs(288),
        },
        rules: vec![RuleSummary {
            id: "destructive-needs-a-yes".to_owned(),
            file: "rules/20-guardrails.cedar".to_owned(),
            why: "Somebody from security agrees before anything stops working.".to_owned(),
        }],
        needs: vec![need("one-security", 1, Vec::new(), false)],
        task: TaskId::from_random([2; 16]),
        task_key: Thumbprint(Digest::sha256(b"key")),
        max_ttl: 300,
        uses: Some(1),
        policy: Digest::sha256(b"policy"),
        opened_at: NOW.plus_secs(-10),
        expires_at: NOW.plus_secs(890),
        anomalies: Vec::new(),
        history: Some(History {
            approved: 4,
            denied: 1,
            approved_by_caller: 2,
            denied_by_caller: 0,
            last_approved_at: Some(NOW.plus_secs(-86_400)),
            last_denied_at: Some(NOW.plus_secs(-864_000)),
            last_denied_by: Some(who("lee", "Lee Song")),
            requested_today: 1,
            first: false,
        }),
        dwell_s: 0,
        console_url: Some(
            "https://broker.soc.example/console/requests/areq_AQEBAQEBAQEBAQEBAQEBAQ".to_owned(),
        ),
        purpose: Some(word("contain INC-8841", |t| {
            UntrustedText::parse("purpose", t)
        })),
        reason: Some(word("phish confirmed", |t| {
            UntrustedText::parse("reason", t)
        })),
    }
}

fn record(members: &[(&str, Param)]) -> Param {
    let members = members.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
    Param::Record(members.collect())
}

fn text(text: &str) -> Param {
    Param::Str(text.to_owned())
}

/// A card with every row.
fn everything() -> Card {
    let hosts = Param::set(vec![text("web-2"), text("web-1")]).expect("set");
    let people = Param::set(vec![
        record(&[
            ("name", text("Bo \"the\" \\ Bear")),
            ("admin", Param::Bool(false)),
        ]),
        record(&[("name", text("true")), ("admin", Param::Bool(true))]),
    ]);
    let asked = action(
        "host.isolate",
        "Host",
        "web-1",
        "https://edr.soc.example",
        &[
            ("empty", Param::Set(Vec::new())),
            ("hosts", hosts),
            ("minutes", Param::Int(-9_007_199_254_740_991)),
            ("nothing", record(&[])),
            ("note", text(&"a long note of many words ".repeat(12))),
            ("people", people.expect("set")),
            (
                "who",
                record(&[
                    ("deep", record(&[("er", Param::Bool(true))])),
                    ("phone", text("")),
                ]),
            ),
        ],
    );
    let titles = [
        ("hosts", "Hosts to cut off"),
        ("who", "For whom"),
        ("who.deep.er", "Deeper"),
        ("people[].name", "Name"),
    ];
    Card {
        title: "Isolate a host".to_owned(),
        reversible: "no".to_owned(),
        risk: Some(Risk::High),
        action: Some(Arc::new(asked)),
        parameter_titles: titles.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        rules: vec![
            ordinary().rules[0].clone(),
            RuleSummary {
                id: "isolating-production-needs-two".to_owned(),
                file: "rules/20-guardrails.cedar".to_owned(),
                why: String::new(),
            },
        ],
        needs: vec![
            need("two-security", 2, vec![who("lee", "Lee Song")], true),
            need("one-oncall", 1, Vec::new(), false),
        ],
        anomalies: vec![
            "nothing was decided on this target before".to_owned(),
            "none at this hour (03 UTC) among the 41 decided before".to_owned(),
        ],
        dwell_s: 3,
        uses: Some(3),
        reason: Some(word(&"because ".repeat(80), |t| {
            UntrustedText::parse("reason", t)
        })),
        ..ordinary()
    }
}

/// A card with few known facts, whose untrusted texts are all hostile.
fn hostile() -> Card {
    let wild = || WILD.to_owned();
    let asked = Action::new(
        word("account.disable", ActionName::parse),
        word(IDP, Audience::parse),
        Target::parse("Account", "p\u{430}ypal  \u{5d0}nn").expect("target"),
        BTreeMap::from([
            ("note".to_owned(), Param::Str(wild())),
            ("owner".to_owned(), text("Nobody")),
            ("needs".to_owned(), record(&[("token", Param::Str(wild()))])),
            (
                "set".to_owned(),
                Param::set(vec![Param::Str(wild()), text("\u{FF41}")]).expect("set"),
            ),
        ]),
    );
    Card {
        title: wild(),
        effect: wild(),
        reversible: wild(),
        undo: wild(),
        risk: None,
        action: Some(Arc::new(asked.expect("action"))),
        parameter_titles: [("note".to_owned(), wild())].into(),
        target_attributes: Some(vec![(wild(), wild()), ("environment".to_owned(), wild())]),
        agent: Requester {
            owner: who("dana", WILD),
            registered: Some(AgentRegistration {
                environment: wild(),
                model: wild(),
                autonomy: wild(),
            }),
            ..ordinary().agent
        },
        verified: Attestation {
            kind: wild(),
            ..ordinary().verified
        },
        rules: vec![RuleSummary {
            id: wild(),
            file: wild(),
            why: wild(),
        }],
        needs: vec![ProfileProgress {
            group: wild(),
            approvers: vec![who("lee", WILD)],
            ..need("one-security", 1, Vec::new(), false)
        }],
        anomalies: vec![wild()],
        history: None,
        console_url: Some(wild()),
        purpose: Some(word(WILD, |t| UntrustedText::parse("purpose", t))),
        reason: Some(word(&WILD.repeat(8), |t| UntrustedText::parse("reason", t))),
        ..ordinary()
    }
}

/// The rows as the console's template gets them, one line per text.
fn rows(card: &Card) -> String {
    let shown = card.show(NOW);
    let head = &shown.headline;
    let mut out = format!(
        "verb {}\nobject {}\ntype {}\nenvironment {:?}\naction {}\nrisk {}\nflags {:#?}\nphrase {}\ndeadline {} in {}\ndwell {}\nurl {:?}\n",
        head.verb,
        head.object,
        head.object_type,
        head.environment,
        head.action,
        head.risk_word,
        head.flags,
        shown.phrase,
        shown.deadline,
        shown.left,
        shown.dwell_s,
        shown.console_url,
    );
    for section in &shown.sections {
        out.push_str(&format!(
            "== {} | {}\n",
            section.kind.as_str(),
            section.title
        ));
        for row in &section.rows {
            out.push_str(&format!("{} [{}]\n", row.label, row.tone.as_str()));
            if let Some(caption) = &row.caption {
                out.push_str(&format!("  ({caption})\n"));
            }
            for line in &row.lines {
                out.push_str(&format!("  {line}\n"));
            }
            for flag in &row.flags {
                out.push_str(&format!("  ! {flag}\n"));
            }
        }
    }
    out
}

#[test]
fn card_layouts_golden() {
    for (name, card) in [
        ("ordinary", ordinary()),
        ("everything", everything()),
        ("hostile", hostile()),
    ] {
        golden(
            &format!("card/{name}.text.txt"),
            &card::render_terminal(&card, NOW, 80),
        );
        golden(
            &format!("card/{name}.chat.txt"),
            &card::render_chat(&card, NOW),
        );
        golden(&format!("card/{name}.rows.txt"), &rows(&card));
    }
}

/// Labels that a terminal card may have; names follow `with` and `target`.
const LABELS: &[&str] = &[
    "agent",
    "owner",
    "verified",
    "environment",
    "model",
    "autonomy",
    "registered",
    "rule",
    "effect",
    "reversible",
    "undo",
    "with",
    "target",
    "unusual",
    "like this",
    "your votes",
    "today",
    "token",
    "only for",
    "bound to",
    "needs",
    "action",
    "digest",
    "request",
    "realm",
    "task",
    "task key",
    "policy",
    "profile",
    "for",
    "reason",
];

/// Asserts that a terminal card has only its own rows, whatever the untrusted text.
fn assert_layout_is_intact(shown: &str, columns: usize) {
    for c in shown.chars() {
        assert!(
            c == '\n' || !needs_escape(c),
            "U+{:04X} is printed:\n{shown}",
            c as u32
        );
    }
    let mut seen = Vec::new();
    // The headline is between the first two blank lines.
    let mut blank = 0;
    for (n, line) in shown.lines().enumerate() {
        let wide = |c: char| if u32::from(c) < 0x1100 { 1 } else { 2 };
        assert!(
            line.chars().map(wide).sum::<usize>() <= columns,
            "too wide: {line}"
        );
        assert!(
            n == 0 || line.is_empty() || line.starts_with("  "),
            "at the edge: {line:?}"
        );
        blank += usize::from(line.is_empty());
        // After the margin of two blanks, only labels begin.
        let Some(label) = line
            .strip_prefix("  ")
            .filter(|rest| !rest.starts_with(' '))
        else {
            continue;
        };
        let label = label.split("  ").next().unwrap_or_default();
        let named = label.starts_with("with ") || label.starts_with("target ");
        let known = named || LABELS.contains(&label);
        if known && !named {
            seen.push(label.to_owned());
        }
        let ours = label.starts_with("! ")
            || label.starts_with("The agent says (unverified):")
            || label.starts_with("match phrase ");
        assert!(
            known || ours || blank < 2,
            "not a row of the card: {line:?}\n{shown}"
        );
    }
    let once: BTreeSet<&String> = seen.iter().collect();
    for label in once {
        if !["rule", "needs", "profile", "unusual", "with"].contains(&label.as_str()) {
            assert_eq!(
                seen.iter().filter(|l| *l == label).count(),
                1,
                "{label} twice:\n{shown}"
            );
        }
    }
}

#[test]
fn untrusted_text_cannot_forge_rows() {
    for card in [ordinary(), everything(), hostile()] {
        for columns in [0, 80, 81, 100, 133, 10_000] {
            assert_layout_is_intact(&card::render_terminal(&card, NOW, columns), columns.max(80));
        }
    }
    let chat = card::render_chat(&hostile(), NOW);
    assert!(!chat.contains(|c| c != '\n' && needs_escape(c)), "{chat}");
    assert!(
        !chat
            .lines()
            .any(|line| line.trim_start().starts_with("owner")),
        "{chat}"
    );
    for secret in [
        "note",
        "contain INC",
        "phish",
        "with ",
        "Ann Archer",
        "end_sessions",
    ] {
        assert!(
            !card::render_chat(&ordinary(), NOW).contains(secret),
            "{secret} in a chat"
        );
    }
}

#[test]
fn signed_fields_precede_agent_text() {
    let card = everything();
    let shown = card::render_terminal(&card, NOW, 100_000);
    let asked = card.action.clone().expect("action");
    let signed = [
        card.realm.to_string(),
        card.access_request.to_string(),
        card.agent.id.to_string(),
        card.agent.owner.id.to_string(),
        card.task.to_string(),
        card.task_key.to_string(),
        asked.name.to_string(),
        asked.audience.to_string(),
        asked.target.to_string(),
        asked.digest().to_string(),
        "5m, 3 uses".to_owned(),
        card.policy.to_string(),
        card.needs[0].profile.digest.to_string(),
        card.needs[1].profile.digest.to_string(),
        card.phrase().to_string(),
        "\"Bo \\\"the\\\" \\\\ Bear\"".to_owned(),
        "a long note of many words ".repeat(11),
    ];
    for text in &signed {
        assert!(
            shown.contains(text.as_str()),
            "{text} is not on the card:\n{shown}"
        );
    }
    let words = shown.find("The agent says (unverified)").expect("labelled");
    assert!(shown.find(&card.policy.to_string()).expect("policy") < words);
    assert!(
        shown.contains("and 140 more characters, not shown"),
        "{shown}"
    );
    assert!(
        !shown[..words].contains("because because"),
        "only in the agent's words"
    );
    assert!(shown.find("ISOLATE A HOST").expect("verb") < shown.find("agent ").expect("agent"));
    let unknown = card::render_terminal(&hostile(), NOW, 80);
    for said in [
        "RISK UNKNOWN",
        "unknown: no figures",
        "MIXED SCRIPTS",
        "RIGHT TO LEFT",
    ] {
        assert!(unknown.contains(said), "{said}:\n{unknown}");
    }
    let gone = Card {
        action: None,
        target_attributes: None,
        ..ordinary()
    };
    let gone = card::render_terminal(&gone, NOW, 80);
    assert!(
        gone.contains("NO LONGER ON RECORD") && gone.contains("NOT KNOWN"),
        "{gone}"
    );
}

/// Any text, biased towards hostile characters.
fn wild() -> impl Strategy<Value = String> {
    let hard: Vec<char> = WILD.chars().collect();
    let one = prop_oneof![
        any::<char>(),
        proptest::sample::select(hard),
        proptest::sample::select(vec![
            ' ',
            '\n',
            'a',
            '\u{301}',
            '\u{200D}',
            '\u{1F600}',
            '\u{4E00}'
        ]),
    ];
    proptest::collection::vec(one, 0..120).prop_map(|all| all.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn untrusted_text_proptest(
        texts in proptest::collection::vec(wild(), 8),
        columns in 80_usize..200,
    ) {
        let text = |n: usize| texts[n].clone();
        let card = Card {
            title: text(0),
            effect: text(1),
            action: Some(Arc::new(action("account.disable", "Account", "ann", IDP, &[("note", Param::Str(text(2)))]))),
            parameter_titles: [("note".to_owned(), text(3))].into(),
            target_attributes: Some(vec![(text(4), text(5))]),
            purpose: UntrustedText::parse("purpose", &text(6)).ok(),
            reason: UntrustedText::parse("reason", &text(7)).ok(),
            ..hostile()
        };
        assert_layout_is_intact(&card::render_terminal(&card, NOW, columns), columns);
        for line in card::render_chat(&card, NOW).lines() {
            prop_assert!(!line.contains(needs_escape), "{line:?}");
        }
    }
}

/// Many different words of characters confusable with Latin.
fn doubles() -> impl Strategy<Value = String> {
    let letters = vec![
        '\u{430}', '\u{435}', '\u{43e}', '\u{440}', '\u{441}', '\u{445}',
    ];
    let word = proptest::collection::vec(proptest::sample::select(letters), 2..8);
    let word = word.prop_map(|letters| letters.into_iter().collect::<String>());
    proptest::collection::vec(word, 1..300).prop_map(|words| words.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Warnings add a bounded number of lines, so that they never scroll the warned text away.
    #[test]
    fn warning_lines_are_bounded(texts in proptest::collection::vec(doubles(), 4), columns in 80_usize..200) {
        // Control: as wide, without anything to warn of.
        let plain = |text: &str| text.replace(|c: char| c != ' ', "x");
        let card = |change: &dyn Fn(&str) -> String| {
            let items: Vec<Param> = texts[3]
                .split(' ')
                .collect::<BTreeSet<_>>()
                .into_iter()
                .take(100)
                .enumerate()
                // Numbered, so that sets have the same number of members.
                .map(|(n, word)| text(&format!("{n:03} {}", change(word))))
                .collect();
            let parameters = [
                ("note", text(&change(&texts[0]))),
                ("set", Param::set(items).expect("set")),
            ];
            let prose = |name, text: &str| {
                let head: String = text.chars().take(1_000).collect();
                UntrustedText::parse(name, &change(&head)).ok()
            };
            Card {
                action: Some(Arc::new(action("account.disable", "Account", "ann", IDP, &parameters))),
                purpose: prose("purpose", &texts[1]),
                reason: prose("reason", &texts[2]),
                ..ordinary()
            }
        };
        let lines = |card: &Card| card::render_terminal(card, NOW, columns).lines().count();
        let wild = card(&|text| text.to_owned());
        let (shown, calm) = (lines(&wild), lines(&card(&plain)));
        // Four rows; at most seven flags of the set and one of each other; each at most ten lines.
        prop_assert!(shown <= calm + 10 * 10, "{shown} lines and not {calm}");
        for section in wild.show(NOW).sections {
            for row in section.rows {
                prop_assert!(row.flags.len() <= 7, "{row:?}");
            }
        }
    }
}

/// Truncated text raises no flag.
#[test]
fn truncated_text_is_not_flagged() {
    let said = format!("{}{}", "a".repeat(card::AGENT_WORDS_MAX), " p\u{430}ypal");
    let card = Card {
        reason: UntrustedText::parse("reason", &said).ok(),
        ..ordinary()
    };
    let shown = card::render_terminal(&card, NOW, 80);
    assert!(
        shown.contains("and 7 more characters, not shown"),
        "{shown}"
    );
    assert!(!shown.contains("MIXED SCRIPTS"), "{shown}");
}

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
    let wild = json!(WILD).to_string();
    let entities = entities.replacen("\"Ann Archer\"", &wild, 1);
    files.insert("entities.json".to_owned(), entities);
    served
        .operator("olga")
        .apply_policy_bundle(&files)
        .await
        .expect("in force");

    let agent = AgentClient::new(served.endpoint(), served.evidence("triage"), None);
    let opening = OpenTaskRequest {
        purpose: WILD.into(),
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
                ("note", Param::Str(WILD.to_owned())),
                ("owner", text("Nobody (nobody)")),
            ],
        ),
        ttl_s: 300,
        reason: WILD.into(),
        idempotency_key: Some("r-1".into()),
        wait_s: 0,
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
        let said = String::from_utf8(output.stdout).expect("text");
        let aside = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {aside}{said}");
        said
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
        json!(WILD),
        "as it came"
    );

    let approved = run(&["approve", &id, "--yes", "--ttl", "60s", "--uses", "1"]).await;
    let (card, told) =
        approved.split_at(approved.find("your approval is recorded").expect("voted"));
    assert_layout_is_intact(card.trim_end_matches('\n'), 80);
    assert!(told.contains("is approved"), "{told}");
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
