//! Approval card: the same rows on every surface, and untrusted text confined to its row.

mod distinct;
mod end_to_end;
mod layout;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dipylon_sdk::card::{
    AccessRequestStatus, AgentRegistration, Attestation, Card, CountedApproval, ExecutingAgent,
    History, PersonRef, ProfileProgress, Requester, RequestingAgent, RuleSummary,
};
use dipylon_sdk::model::text::needs_escape;
use dipylon_sdk::model::*;

use crate::golden::word;
use crate::support::{IDP, action};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Every trick of untrusted text: bidi, invisible characters, line breaks, terminal escapes, combining marks, confusables.
const TRICKS: &str = "x\u{202E}\u{2066}\u{200B}\u{FE0F}\u{E0041}\u{E000}\n  owner       Nobody (nobody)\r\n\u{1B}[2J\u{9B}31m\u{2028}  \
     needs  0 of 0\u{0}\u{335}\u{335}\u{335}\u{335} p\u{430}yp\u{430}l \u{FF41}dmin <b onclick=x>*_`@all ";

fn person(id: &str, name: &str) -> PersonRef {
    PersonRef {
        id: word(id, PersonId::parse),
        name: Some(name.to_owned()),
    }
}

fn approval(person: PersonRef, method: VoteMethod) -> CountedApproval {
    CountedApproval { person, method }
}

fn profile_progress(
    name: &str,
    quorum: u32,
    approvers: Vec<CountedApproval>,
    passkey: bool,
) -> ProfileProgress {
    ProfileProgress {
        profile: ProfileRef {
            name: word(name, ProfileName::parse),
            digest: Digest::sha256(name.as_bytes()),
        },
        group: "security".to_owned(),
        quorum,
        approvers,
        passkey,
        key_notes: Vec::new(),
    }
}

fn requesting_agent() -> RequestingAgent {
    RequestingAgent {
        id: word("triage", AgentId::parse),
        owner: person("dana", "Dana Ruiz"),
        registered: Some(AgentRegistration {
            environment: "prod".to_owned(),
            model: "example-large-2".to_owned(),
            autonomy: "supervised".to_owned(),
        }),
        verified: Attestation {
            kind: "jwt-svid".to_owned(),
            subject: word("spiffe://soc.example/agent/triage", SpiffeId::parse),
            issued_at: Some(NOW.plus_secs(-600)),
            verified_at: NOW.plus_secs(-12),
            expires_at: NOW.plus_secs(288),
        },
        task: TaskId::from_random([2; 16]),
        task_key: Thumbprint(Digest::sha256(b"key")),
        executor: None,
    }
}

/// What an advisory agent recommends.
fn recommendation() -> Card {
    let requester = RequestingAgent {
        id: word("assistant", AgentId::parse),
        owner: person("olga", "Olga Okafor"),
        registered: Some(AgentRegistration {
            environment: "prod".to_owned(),
            model: "example-large-2".to_owned(),
            autonomy: "advisory".to_owned(),
        }),
        executor: Some(ExecutingAgent {
            id: word("responder", AgentId::parse),
            owner: person("maria", "Maria Moreau"),
            registered: requesting_agent().registered,
        }),
        ..requesting_agent()
    };
    Card {
        requester: Requester::Agent(Box::new(requester)),
        ..ordinary()
    }
}

fn ordinary() -> Card {
    Card {
        access_request: AccessRequestId::from_random([1; 16]),
        status: AccessRequestStatus::Waiting,
        realm: word("soc", Realm::parse),
        title: "Disable an account".to_owned(),
        effect: "The account can no longer sign in.".to_owned(),
        reversible: "reversible".to_owned(),
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
        named_facts: BTreeMap::new(),
        openings: None,
        changes: None,
        plan: Vec::new(),
        requester: Requester::Agent(Box::new(requesting_agent())),
        rules: vec![RuleSummary {
            id: "destructive-needs-approval".to_owned(),
            file: "rules/20-guardrails.cedar".to_owned(),
            why: "Security approves every action that stops something from working.".to_owned(),
            effect: "step_up".to_owned(),
        }],
        needs: vec![profile_progress("one-security", 1, Vec::new(), false)],
        delay: None,
        void_votes: Vec::new(),
        max_ttl: Some(300),
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
            last_denied_by: Some(person("lee", "Lee Song")),
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
    let requested = action(
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
        reversible: "irreversible".to_owned(),
        risk: Some(Risk::High),
        action: Some(Arc::new(requested)),
        parameter_titles: titles.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        rules: vec![
            ordinary().rules[0].clone(),
            RuleSummary {
                id: "isolating-production-needs-two".to_owned(),
                file: "rules/20-guardrails.cedar".to_owned(),
                why: String::new(),
                effect: "step_up".to_owned(),
            },
        ],
        needs: vec![
            profile_progress(
                "two-security",
                2,
                vec![approval(person("lee", "Lee Song"), VoteMethod::Passkey)],
                true,
            ),
            profile_progress("one-oncall", 1, Vec::new(), false),
        ],
        anomalies: vec![
            "no earlier decision on this target".to_owned(),
            "no earlier decision at this hour (03 UTC) among 41".to_owned(),
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
    let wild = || TRICKS.to_owned();
    let requested = Action::new(
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
        action: Some(Arc::new(requested.expect("action"))),
        parameter_titles: [("note".to_owned(), wild())].into(),
        target_attributes: Some(vec![(wild(), wild()), ("environment".to_owned(), wild())]),
        requester: Requester::Agent(Box::new(RequestingAgent {
            owner: person("dana", TRICKS),
            registered: Some(AgentRegistration {
                environment: wild(),
                model: wild(),
                autonomy: wild(),
            }),
            executor: Some(ExecutingAgent {
                id: word("responder", AgentId::parse),
                owner: person("maria", TRICKS),
                registered: Some(AgentRegistration {
                    environment: wild(),
                    model: wild(),
                    autonomy: wild(),
                }),
            }),
            verified: Attestation {
                kind: wild(),
                issued_at: None,
                ..requesting_agent().verified
            },
            ..requesting_agent()
        })),
        rules: vec![RuleSummary {
            id: wild(),
            file: wild(),
            why: wild(),
            effect: "step_up".to_owned(),
        }],
        needs: vec![ProfileProgress {
            group: wild(),
            approvers: vec![approval(person("lee", TRICKS), VoteMethod::Key)],
            ..profile_progress("one-security", 1, Vec::new(), false)
        }],
        anomalies: vec![wild()],
        history: None,
        console_url: Some(wild()),
        purpose: Some(word(TRICKS, |t| UntrustedText::parse("purpose", t))),
        reason: Some(word(&TRICKS.repeat(8), |t| {
            UntrustedText::parse("reason", t)
        })),
        ..ordinary()
    }
}

/// Labels that a terminal card may have; names follow `with` and `target`.
const LABELS: &[&str] = &[
    "agent",
    "recommended by",
    "executor",
    "executor's owner",
    "executor's environment",
    "executor's model",
    "executor's autonomy",
    "executor's registered",
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
    "similar requests",
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
    "facts",
    "proposed by",
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
            || label.starts_with("+ ")
            || label.starts_with("The agent says (unverified):")
            || label.starts_with("long values are folded")
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
