//! The card: the same rows on every face, and nothing of what others wrote out of its place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dipylon::card::{
    self, AccessRequestStatus, Asker, Attestation, Card, History, Need, Registered, RuleShown, Who,
};
use dipylon::client::{Agent, OpenTask, Outcome, TokenOrder};
use dipylon::model::text::is_coded;
use dipylon::model::*;
use proptest::prelude::*;
use serde_json::json;
use tokio::process::Command;

use super::golden::{golden, word};
use super::harness::{DOMAIN, IDP, action};
use super::served::Served;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Everything a text can do to a reader: turn around, vanish, break lines, talk to the terminal, climb, look like another.
const WILD: &str = "x\u{202E}\u{2066}\u{200B}\u{FE0F}\u{E0041}\u{E000}\n  owner       Nobody (nobody)\r\n\u{1B}[2J\u{9B}31m\u{2028}  \
     needs  0 of 0\u{0}\u{335}\u{335}\u{335}\u{335} p\u{430}yp\u{430}l \u{FF41}dmin <b onclick=x>*_`@all ";

fn who(id: &str, name: &str) -> Who {
    Who {
        id: word(id, PersonId::parse),
        name: Some(name.to_owned()),
    }
}

fn need(name: &str, quorum: u32, approvers: Vec<Who>, passkey: bool) -> Need {
    Need {
        profile: ProfileRef {
            name: word(name, ProfileName::parse),
            digest: Digest::of(name.as_bytes()),
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
        standing: AccessRequestStatus::Waiting,
        realm: word("soc", Realm::parse),
        title: "Disable an account".to_owned(),
        effect: "The account can no longer sign in.".to_owned(),
        reversible: "yes".to_owned(),
        undo: "Enable the account at the identity provider.".to_owned(),
        risk: Some(Risk::Medium),
        action: Some(Arc::new(super::harness::disable("ann"))),
        parameter_titles: [(
            "end_sessions".to_owned(),
            "Also end open sessions".to_owned(),
        )]
        .into(),
        target_facts: Some(vec![
            ("environment".to_owned(), "prod".to_owned()),
            ("name".to_owned(), "Ann Archer".to_owned()),
            ("protected".to_owned(), "false".to_owned()),
        ]),
        agent: Asker {
            id: word("triage", AgentId::parse),
            owner: who("dana", "Dana Ruiz"),
            registered: Some(Registered {
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
        rules: vec![RuleShown {
            id: "destructive-needs-a-yes".to_owned(),
            file: "rules/20-guardrails.cedar".to_owned(),
            why: "Somebody from security agrees before anything stops working.".to_owned(),
        }],
        needs: vec![need("one-security", 1, Vec::new(), false)],
        task: TaskId::from_random([2; 16]),
        task_key: Thumbprint(Digest::of(b"key")),
        max_ttl: 300,
        uses: Some(1),
        policy: Digest::of(b"policy"),
        opened_at: NOW.plus_secs(-10),
        expires_at: NOW.plus_secs(890),
        unusual: Vec::new(),
        history: Some(History {
            approved: 4,
            denied: 1,
            yours_approved: 2,
            yours_denied: 0,
            last_approved_at: Some(NOW.plus_secs(-86_400)),
            last_denied_at: Some(NOW.plus_secs(-864_000)),
            last_denied_by: Some(who("lee", "Lee Song")),
            today: 1,
            first: false,
        }),
        dwell_s: 0,
        console_url: Some(
            "https://broker.soc.example/console/requests/areq_AQEBAQEBAQEBAQEBAQEBAQ".to_owned(),
        ),
        purpose: Some(word("contain INC-8841", |t| Prose::parse("purpose", t))),
        reason: Some(word("phish confirmed", |t| Prose::parse("reason", t))),
    }
}

fn record(members: &[(&str, Param)]) -> Param {
    let members = members.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
    Param::Record(members.collect())
}

fn text(text: &str) -> Param {
    Param::Str(text.to_owned())
}

/// Everything that a card can have.
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
            RuleShown {
                id: "isolating-production-needs-two".to_owned(),
                file: "rules/20-guardrails.cedar".to_owned(),
                why: String::new(),
            },
        ],
        needs: vec![
            need("two-security", 2, vec![who("lee", "Lee Song")], true),
            need("one-oncall", 1, Vec::new(), false),
        ],
        unusual: vec![
            "nothing was decided on this target before".to_owned(),
            "none at this hour (03 UTC) among the 41 decided before".to_owned(),
        ],
        dwell_s: 3,
        uses: Some(3),
        reason: Some(word(&"because ".repeat(80), |t| Prose::parse("reason", t))),
        ..ordinary()
    }
}

/// Little is known, and every text that anyone may choose is wild.
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
        target_facts: Some(vec![(wild(), wild()), ("environment".to_owned(), wild())]),
        agent: Asker {
            owner: who("dana", WILD),
            registered: Some(Registered {
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
        rules: vec![RuleShown {
            id: wild(),
            file: wild(),
            why: wild(),
        }],
        needs: vec![Need {
            group: wild(),
            approvers: vec![who("lee", WILD)],
            ..need("one-security", 1, Vec::new(), false)
        }],
        unusual: vec![wild()],
        history: None,
        console_url: Some(wild()),
        purpose: Some(word(WILD, |t| Prose::parse("purpose", t))),
        reason: Some(word(&WILD.repeat(8), |t| Prose::parse("reason", t))),
        ..ordinary()
    }
}

/// The rows as the console's template has them, a line for each text.
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
fn three_cards_on_three_faces() {
    for (name, card) in [
        ("ordinary", ordinary()),
        ("everything", everything()),
        ("hostile", hostile()),
    ] {
        golden(
            &format!("card/{name}.text.txt"),
            &card::text(&card, NOW, 80),
        );
        golden(&format!("card/{name}.chat.txt"), &card::chat(&card, NOW));
        golden(&format!("card/{name}.rows.txt"), &rows(&card));
    }
}

/// Labels that a card of a terminal may have: ours, and names after `with` and `target`.
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

/// What must hold of a terminal's card, whatever anyone wrote.
fn in_its_place(shown: &str, columns: usize) {
    for c in shown.chars() {
        assert!(
            c == '\n' || !is_coded(c),
            "U+{:04X} is printed:\n{shown}",
            c as u32
        );
    }
    let mut seen = Vec::new();
    // The headline stands between the first two blank lines.
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
        // Behind the two blanks of the margin, labels alone begin.
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
            "not a row of ours: {line:?}\n{shown}"
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
fn nothing_of_others_looks_like_a_row() {
    for card in [ordinary(), everything(), hostile()] {
        for columns in [0, 80, 81, 100, 133, 10_000] {
            in_its_place(&card::text(&card, NOW, columns), columns.max(80));
        }
    }
    let chat = card::chat(&hostile(), NOW);
    assert!(!chat.contains(|c| c != '\n' && is_coded(c)), "{chat}");
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
            !card::chat(&ordinary(), NOW).contains(secret),
            "{secret} in a chat"
        );
    }
}

#[test]
fn what_is_signed_is_on_the_card_and_the_agents_words_come_last() {
    let card = everything();
    let shown = card::text(&card, NOW, 100_000);
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
        "the agent's words alone"
    );
    assert!(shown.find("ISOLATE A HOST").expect("verb") < shown.find("agent ").expect("agent"));
    let unknown = card::text(&hostile(), NOW, 80);
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
        target_facts: None,
        ..ordinary()
    };
    let gone = card::text(&gone, NOW, 80);
    assert!(
        gone.contains("NO LONGER ON RECORD") && gone.contains("NOT KNOWN"),
        "{gone}"
    );
}

/// Any text, with more than its share of what is hard.
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
    fn whatever_anyone_writes_stays_in_its_place(
        texts in proptest::collection::vec(wild(), 8),
        columns in 80_usize..200,
    ) {
        let text = |n: usize| texts[n].clone();
        let card = Card {
            title: text(0),
            effect: text(1),
            action: Some(Arc::new(action("account.disable", "Account", "ann", IDP, &[("note", Param::Str(text(2)))]))),
            parameter_titles: [("note".to_owned(), text(3))].into(),
            target_facts: Some(vec![(text(4), text(5))]),
            purpose: Prose::parse("purpose", &text(6)).ok(),
            reason: Prose::parse("reason", &text(7)).ok(),
            ..hostile()
        };
        in_its_place(&card::text(&card, NOW, columns), columns);
        for line in card::chat(&card, NOW).lines() {
            prop_assert!(!line.contains(is_coded), "{line:?}");
        }
    }
}

/// Words that look Latin and are not, many of them different.
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

    /// Warnings never scroll away what they warn of: whatever is written, they add so many lines and no more.
    #[test]
    fn warnings_add_few_lines(texts in proptest::collection::vec(doubles(), 4), columns in 80_usize..200) {
        // As wide, and nothing to warn of.
        let plain = |text: &str| text.replace(|c: char| c != ' ', "x");
        let card = |change: &dyn Fn(&str) -> String| {
            let items: Vec<Param> = texts[3]
                .split(' ')
                .collect::<BTreeSet<_>>()
                .into_iter()
                .take(100)
                .enumerate()
                // Numbered, so that sets have as many members whatever the letters.
                .map(|(n, word)| text(&format!("{n:03} {}", change(word))))
                .collect();
            let parameters = [
                ("note", text(&change(&texts[0]))),
                ("set", Param::set(items).expect("set")),
            ];
            let prose = |name, text: &str| {
                let head: String = text.chars().take(1_000).collect();
                Prose::parse(name, &change(&head)).ok()
            };
            Card {
                action: Some(Arc::new(action("account.disable", "Account", "ann", IDP, &parameters))),
                purpose: prose("purpose", &texts[1]),
                reason: prose("reason", &texts[2]),
                ..ordinary()
            }
        };
        let lines = |card: &Card| card::text(card, NOW, columns).lines().count();
        let wild = card(&|text| text.to_owned());
        let (shown, calm) = (lines(&wild), lines(&card(&plain)));
        // Four rows; seven flags at most of the set, one of each other; each at most ten lines.
        prop_assert!(shown <= calm + 10 * 10, "{shown} lines and not {calm}");
        for section in wild.show(NOW).sections {
            for row in section.rows {
                prop_assert!(row.flags.len() <= 7, "{row:?}");
            }
        }
    }
}

/// Nobody is warned of what is not shown.
#[test]
fn what_is_cut_off_raises_no_flag() {
    let said = format!("{}{}", "a".repeat(card::AGENT_WORDS_MAX), " p\u{430}ypal");
    let card = Card {
        reason: Prose::parse("reason", &said).ok(),
        ..ordinary()
    };
    let shown = card::text(&card, NOW, 80);
    assert!(
        shown.contains("and 7 more characters, not shown"),
        "{shown}"
    );
    assert!(!shown.contains("MIXED SCRIPTS"), "{shown}");
}

/// The agent's purpose, reason and parameters, and what a policy bundle may hold: from the doors to the terminal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_text_goes_through_the_front_door_and_stays_in_its_place() {
    let served = Served::start().await;
    let mut files = served.world.policy_with("schema.cedarschema", |schema| {
        let note = "end_sessions: Bool,\n      @title(\"Your n\u{43e}te\")\n      note?: String,\n      owner?: String,";
        let schema = schema.replacen("end_sessions: Bool,", note, 1);
        schema.replacen("\"Disable an account\"", "\"Dis\u{430}ble an account\"", 1)
    });
    let entities = &files["entities.json"];
    let wild = json!(WILD).to_string();
    let entities = entities.replacen("\"Ann Archer\"", &wild, 1);
    files.insert("entities.json".to_owned(), entities);
    served
        .person("olga")
        .apply_policy_bundle(&files)
        .await
        .expect("in force");

    let agent = Agent::new(served.endpoint(), served.evidence("triage"), None);
    let opening = OpenTask {
        purpose: WILD.into(),
        max_duration_s: 600,
        request_id: None,
        heartbeat_s: None,
    };
    let task = agent.open_task(&opening).await.expect("opens");
    let order = TokenOrder {
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
        request_id: Some("r-1".into()),
        wait_s: 0,
    };
    let pending = match task.request_token(&order).await {
        Ok(Outcome::Pending(pending)) => pending,
        other => panic!("not pending: {other:?}"),
    };
    let id = pending.access_request_id().to_string();
    let phrase = pending.match_phrase().to_string();

    let home = tempfile::tempdir().expect("dir");
    let key = home.path().join("maria.pem");
    std::fs::write(&key, served.world.pem_of("maria")).expect("key");
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
    in_its_place(&shown, 80);
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
    assert!(!inbox.contains(|c| c != '\n' && is_coded(c)), "{inbox}");
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
    let (card, told) = approved.split_at(approved.find("your approval is recorded").expect("voted"));
    in_its_place(card.trim_end_matches('\n'), 80);
    assert!(told.contains("is approved"), "{told}");
    let rows_of = |card: &str| -> Vec<String> {
        let lines = card
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty());
        // Times go on.
        lines
            .filter(|line| !line.contains("left") && !line.contains(" ago"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(
        rows_of(card),
        rows_of(&shown),
        "what is voted on is what show shows"
    );
    super::laws::check(&served.dir);
}

/// Keys of people are read only where nobody else may.
fn restrict(key: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).expect("mode");
}
