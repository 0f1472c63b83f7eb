//! The table of entry kinds in `docs/invariants.md`: made from the function that the writer, every start and `audit verify` check
//! entries with, asked before each entry of a journal that holds every kind. `DIPYLON_BLESS=1` rewrites it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use dipylon::audit::JournalVerifier;
use dipylon::broker::{EndTaskInput, FactOrder, FactOutcome};
use dipylon::journal::{self, JournalReader};
use dipylon::state::{State, StateFold};
use dipylon_sdk::model::*;

use crate::docs::{read, root};
use crate::support::agent_in_task::person_id;
use crate::support::passkey_votes::approve;
use crate::support::software_authenticator::PasskeyBehaviour;
use crate::support::*;

/// The kinds of entries, in the order of `Event`.
fn kinds() -> Vec<String> {
    let code = read(&root().join("sdk/src/model/event.rs"));
    let body = code.split("pub enum Event {").nth(1).expect("the enum");
    let body = body.split("\n}\n").next().expect("its end");
    let names = body.lines().filter_map(|line| line.trim().split_once('('));
    let kinds: Vec<String> = names.map(|(name, _)| name.to_owned()).collect();
    assert!(kinds.len() >= 24, "{kinds:?}");
    kinds
}

/// What every entry of a kind has, and what some have.
#[derive(Default)]
struct Seen {
    entries: usize,
    counts: BTreeMap<String, usize>,
}

impl Seen {
    fn add(&mut self, names: BTreeSet<String>) {
        self.entries += 1;
        for name in names {
            *self.counts.entry(name).or_default() += 1;
        }
    }

    fn cell(&self) -> String {
        let named = |always: bool| {
            let names = self.counts.iter();
            let names = names.filter(move |(_, n)| (**n == self.entries) == always);
            names.map(|(name, _)| format!("`{name}`"))
        };
        let sometimes: Vec<String> = named(false).collect();
        let mut parts: Vec<String> = named(true).collect();
        if !sometimes.is_empty() {
            parts.push(format!("({})", sometimes.join(", ")));
        }
        match parts.is_empty() {
            true => "–".to_owned(),
            false => parts.join(", "),
        }
    }
}

/// The kind of a stream; of a freeze with its scope's.
fn name(stream: &Stream) -> String {
    let Stream::Freeze(scope) = stream else {
        return stream.kind().to_owned();
    };
    let scope = scope.to_string();
    let scope = scope.split('/').next().expect("a part");
    format!("freeze:{scope}")
}

/// What the entries of each kind in a journal advance, rest on and claim.
fn rules_of(dir: &Path) -> BTreeMap<&'static str, [Seen; 3]> {
    let state = Arc::new(State::default());
    let mut rules: BTreeMap<&str, [Seen; 3]> = BTreeMap::new();
    let mut fold = StateFold::new(Arc::clone(&state), |_| {});
    let open = || JournalReader::open(dir).expect("journal");
    let mut verifier = JournalVerifier::default();
    let visit = |entry: &Entry| {
        let rule = state.show().entry_rule(&entry.event);
        let rule = rule.expect("the rule of an entry in the journal");
        let [advances, reads, claims] = rules.entry(entry.event.kind()).or_default();
        let kind = |stream: &Stream| stream.kind().to_owned();
        advances.add(rule.advances.iter().map(kind).collect());
        let read = rule.reads.iter().filter(|s| !rule.advances.contains(s));
        reads.add(read.map(name).collect());
        let counters = rule.claims.iter().map(|claim| claim.counter.kind());
        claims.add(counters.map(str::to_owned).collect());
        Ok(())
    };
    journal::replay(&open(), &open(), &mut verifier, &mut fold, visit).expect("replays");
    rules
}

/// A task and what can happen in it, once as an agent without a heartbeat, once with one.
async fn life(b: &TestBroker, agent: &TestAgent, heartbeat: Option<i64>) -> TaskId {
    let life = heartbeat.map_or("a", |_| "b");
    let opened = b.open_task_with(agent, "contain INC-8841", life, heartbeat);
    let task = opened.await.expect("opens").task.task;
    let ask = async |action: &Action, n: &str| {
        b.request_token(agent, task, action, 300, &format!("{life}-{n}"))
            .await
    };
    // Cancelled before and after an approver began to vote.
    for (n, is_voting) in [("cancel", false), ("cancel-late", true)] {
        let id = ask(&disable("ann"), n).await.pending().access_request;
        if is_voting {
            let begun = b.begin_vote("lee", id, "one-security", Verdict::Approve);
            begun.await.expect("begins");
        }
        let method = "dipylon.v1.TaskService/CancelAccessRequest";
        let call = b.call(method, &agent.key, None, None);
        let cancelled = b.broker.cancel_access_request(&call, task, id);
        cancelled.await.expect("cancelled");
    }
    let id = ask(&disable("ann"), "no").await.pending().access_request;
    let vote = b.vote("dana", id, "one-security", Verdict::Approve);
    vote.await.expect_err("the owner cannot vote");
    let vote = b.vote("lee", id, "one-security", Verdict::Deny);
    vote.await.expect("denied");
    let id = ask(&disable("ann"), "yes").await.pending().access_request;
    b.approve("maria", id, "one-security").await;
    let token = ask(&disable("ann"), "yes").await.token();
    assert!(ask(&disable("ann"), "yes").await.token().reissued);
    b.consume("idp", &token.token, "use-1").await.expect("used");
    let read = ask(&read_case(), "read").await.token();
    assert!(ask(&read_case(), "read").await.token().reissued);
    b.revoke(read.issued.jti).await.expect("revoked");
    ask(&read_case(), "kept").await.token();
    ask(&disable("break-glass"), "never").await.denied();
    if heartbeat.is_some() {
        b.manual_clock.advance_millis(40_000);
        b.keep_alive(agent, task).await.expect("extended");
    }
    task
}

/// Enrols a passkey, and votes with a copy of it: the key is revoked by no operator. Then an operator revokes the person's other keys.
async fn passkeys(b: &TestBroker, id: AccessRequestId) {
    let key = b.enrol("maria").await;
    let session = b.sign_in(&key).await.expect("signed in");
    let begun = b.begin_vote_in_session(&session, id, approve());
    let begun = begun.await.expect("begins");
    let copy = PasskeyBehaviour {
        sign_count: Some(1),
        ..PasskeyBehaviour::default()
    };
    let made = key.get_as(begun.challenge.as_bytes(), CONSOLE, &copy);
    let proof = dipylon::broker::VoteProof::Passkey(made);
    let cast = b.cast_vote_in_session(&session, id, &begun, proof);
    cast.await.expect_err("a copy");
    let call = b.person_call("dipylon.v1.ApprovalService/RevokeApproverKeys", "olga");
    let revoked = b
        .broker
        .revoke_approver_keys(&call, person_id("maria"), Default::default());
    revoked.await.expect("revoked");
}

/// A journal with every kind of entry, and of each kind the forms that advance, rest on or claim something else.
async fn every_kind() -> TestBroker {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = life(&b, &triage, None).await;
    b.complete_task(&triage, task).await.expect("completed");

    let people = |text: &str| text.replace("opens_per_minute = 0", "opens_per_minute = 100");
    let mut limited = b.env.policy_with("people.toml", people);
    // A fact that rules read from now on.
    let facts = "[fact.drill]\ntitle = \"A drill\"\nsafe = true\nnormal = false\nmax = \"1h\"\n";
    limited.insert("facts.toml".to_owned(), facts.to_owned());
    limited.insert("rules/91-drill.cedar".to_owned(), DRILL.to_owned());
    // And counts of each kind.
    let counts = ["requests", "denials", "tokens", "uses"].map(|of| {
        format!(
            "[count.{of}]\ntitle = \"{of}\"\nof = \"{of}\"\nper = [\"agent\"]\nwithin = \"1h\"\n"
        )
    });
    limited.insert("counts.toml".to_owned(), counts.concat());
    limited.insert("rules/92-counts.cedar".to_owned(), COUNTED.to_owned());
    b.apply_policy(limited.clone()).await.expect("applied");
    let task = life(&b, &triage, Some(60)).await;
    let forbidden = "@id(\"no-reads\")\n@why(\"Nothing is read.\")\n\
         forbid (principal, action == Action::\"case.read\", resource) when { context.evidence.verified_age < duration(\"365d\") };\n";
    let mut without_reads = limited;
    without_reads.insert("rules/30-more.cedar".to_owned(), forbidden.to_owned());
    b.apply_policy(without_reads.clone())
        .await
        .expect("applied");
    let action = disable("ann");
    let waits = b.request_token(&triage, task, &action, 300, "waits");
    let waits = waits.await.pending().access_request;
    // A rule of another name asks for the same people.
    let mut renamed = without_reads;
    let guardrails = renamed.get_mut("rules/20-guardrails.cedar").expect("rules");
    *guardrails = guardrails.replace("destructive-needs-approval", "destructive-needs-one");
    // The next bundle has to be agreed to.
    let people = renamed.get_mut("people.toml").expect("people");
    people.push_str("\n[changes]\nagree = \"one-security\"\n");
    b.apply_policy(renamed.clone()).await.expect("applied");
    passkeys(&b, waits).await;
    // One hand sets the fact, and another sets it back.
    set_fact(&b, true, Some(60)).await;
    let FactOutcome::Waits(cleared) = set_fact(&b, false, None).await else {
        panic!("it takes another hand")
    };
    b.approve("lee", cleared.access_request, "one-security")
        .await;
    renamed.insert("rules/90-none.cedar".to_owned(), String::new());
    let proposed = b.apply_policy(renamed).await.expect("proposed");
    let proposed = proposed.proposal.expect("waits").access_request;
    b.approve("lee", proposed, "one-security").await;
    let call = b.person_call("dipylon.v1.GovernanceService/EndTask", "olga");
    let outcome = None;
    let ended = b
        .broker
        .end_task_as_operator(&call, EndTaskInput { task, outcome });
    ended.await.expect("ended");

    b.suspend("triage").await.expect("suspended");
    b.resume("triage").await.expect("resumed");
    b.freeze("action/case.note").await.expect("frozen");
    b.unfreeze("action/case.note").await.expect("lifted");
    let error = ParseError::new("task_id", "is required");
    let _refusal = b
        .broker
        .malformed("dipylon.v1.TaskService/KeepAlive", &error);
    b.broker.record_final_counts().await;
    b
}

const COUNTED: &str = "@id(\"counted\") forbid (principal, action in [Action::\"read\", Action::\"destructive\"], resource) \
    when { context.counts.requests + context.counts.denials + context.counts.tokens + context.counts.uses > 1000 };";
const DRILL: &str = "@id(\"drill\") forbid (principal, action in [Action::\"read\", Action::\"destructive\"], resource) when { context.facts.drill };";

async fn set_fact(b: &TestBroker, value: bool, seconds: Option<u32>) -> FactOutcome {
    let order = FactOrder {
        fact: FactName::parse("drill").expect("fact"),
        value,
        seconds,
        reason: None,
    };
    let call = b.person_call("dipylon.v1.GovernanceService/SetFact", "olga");
    b.broker.set_fact(&call, &order).await.expect("set")
}

const BEGIN: &str = "<!-- entry kinds: made by tests/it/entry_rules.rs -->";
const END: &str = "<!-- end of entry kinds -->";

#[tokio::test]
async fn the_table_of_entry_kinds_is_what_the_code_checks() {
    let b = every_kind().await;
    let rules = rules_of(&b.dir);
    let path = root().join("docs/invariants.md");
    let page = read(&path);
    let (before, rest) = page.split_once(BEGIN).expect("the table begins");
    let (table, after) = rest.split_once(END).expect("the table ends");
    // The last column is written by hand.
    let legal: BTreeMap<&str, &str> = table
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
            let (first, last) = (cells.first()?, cells.last()?);
            Some((first.trim().trim_matches('`'), last.trim()))
        })
        .collect();
    let mut made =
        "\n\n| kind | advances | rests on, at least | claims | legal when |\n|---|---|---|---|---|\n"
            .to_owned();
    for kind in kinds() {
        let rule = rules.get(kind.as_str());
        let [advances, reads, claims] =
            rule.unwrap_or_else(|| panic!("the journal of this test has no {kind}"));
        let legal = legal.get(kind.as_str());
        let legal = legal.unwrap_or_else(|| panic!("the table has no row for {kind}"));
        let cells = [advances, reads, claims].map(Seen::cell).join(" | ");
        made.push_str(&format!("| `{kind}` | {cells} | {legal} |\n"));
    }
    made.push('\n');
    if std::env::var_os("DIPYLON_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{made}{END}{after}")).expect("written");
        return;
    }
    assert_eq!(table, made, "run this test with DIPYLON_BLESS=1");
}
