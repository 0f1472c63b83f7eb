//! Entries written into the database behind the broker's back, with the right leaves, root and head: the audit and a start refuse what
//! no broker would have recorded, by the entry's number and with the reason.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use dipylon::broker::FactOrder;
use dipylon::journal::FaultInjection;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;

use crate::audit_votes::journal_copy::JournalCopy;
use crate::support::agent_in_task::{agent_id, person_id};
use crate::support::*;

/// A broker, and what its journal says: a mint by rules, one that consumed an approval, an open task and one that ended, a suspended
/// agent and a frozen action.
struct History {
    b: TestBroker,
    /// The mint by rules.
    read: usize,
    /// The mint that consumed an approval.
    approved: usize,
    /// The opening of the task that is open.
    opened: usize,
    /// The opening of an access request.
    asked: usize,
    ended: TaskId,
    /// A proposal of a policy bundle without a vote.
    proposed: AccessRequestId,
    /// The opening of a recommendation to the responder, which people have approved.
    recommended: usize,
    /// A mint of the responder, in a task that is open.
    executes: usize,
    copy: JournalCopy,
}

async fn history() -> History {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[changes]\nagree = \"one-security\"\n");
    let facts = "[fact.lockdown]\ntitle = \"Cases stay unread\"\nsafe = true\nnormal = false\nmax = \"1h\"\nends = true\n";
    let rule = "@id(\"lockdown\") forbid (principal, action == Action::\"case.read\", resource) when { context.facts.lockdown };";
    env.policy.insert("facts.toml".to_owned(), facts.to_owned());
    let counts = "[count.reads]\ntitle = \"Cases read\"\nof = \"tokens\"\nper = [\"agent\"]\nactions = [\"case.read\"]\nwithin = \"1h\"\n";
    let few = "@id(\"few-reads\") forbid (principal, action == Action::\"case.read\", resource) unless { context.counts.reads < 5 };";
    env.policy
        .insert("counts.toml".to_owned(), counts.to_owned());
    env.policy
        .insert("rules/91-counts.cedar".to_owned(), few.to_owned());
    env.policy
        .insert("rules/90-facts.cedar".to_owned(), rule.to_owned());
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    b.request_token(&triage, task, &read_case(), 300, "read")
        .await
        .token();
    let ask = async || {
        b.request_token(&triage, task, &disable("ann"), 300, "ann")
            .await
    };
    let id = ask().await.pending().access_request;
    b.approve("maria", id, "one-security").await;
    let approved = ask().await.token().issued.jti;
    let second = b.try_open_task(&triage, "more", "open-2").await;
    let ended = second.expect("opens").task.task;
    b.complete_task(&triage, ended).await.expect("ended");
    b.suspend("reporter").await.expect("suspended");
    let (assistant, responder) = (b.agent("assistant"), b.agent("responder"));
    let recommends_in = b.open_task(&assistant).await;
    let advised = disable("ann");
    let advice = b.request_token(&assistant, recommends_in, &advised, 300, "advice");
    let advice = advice.await.pending().access_request;
    b.approve("dana", advice, "one-security").await;
    let executes_in = b.open_task(&responder).await;
    b.request_token(&responder, executes_in, &read_case(), 300, "read")
        .await
        .token();
    b.freeze("action/case.note").await.expect("frozen");
    let method = "dipylon.v1.GovernanceService/SetFact";
    let order = FactOrder {
        fact: lockdown(),
        value: true,
        seconds: Some(600),
        reason: None,
    };
    let call = b.person_call(method, "olga");
    let set = b.broker.set_fact(&call, &order).await;
    set.expect("set by one hand");
    let more = b
        .env
        .policy_with("rules/90-proposed.cedar", |_| String::new());
    let proposed = b.apply_policy(more).await.expect("proposed").proposal;
    let proposed = proposed.expect("waits").access_request;
    let copy = JournalCopy::read(&b);
    let mint = |consumed: bool| {
        copy.find(|e| matches!(e, Event::TokenIssued(f) if f.task == task && (f.jti == approved) == consumed))
    };
    History {
        read: mint(false),
        approved: mint(true),
        opened: copy.find(|e| matches!(e, Event::TaskOpened(f) if f.task == task)),
        asked: copy.find(|e| matches!(e, Event::AccessRequestOpened(f) if f.task() == Some(task))),
        recommended: copy
            .find(|e| matches!(e, Event::AccessRequestOpened(f) if f.executor().is_some())),
        executes: copy.find(|e| matches!(e, Event::TokenIssued(f) if f.task == executes_in)),
        ended,
        proposed,
        copy,
        b,
    }
}

impl History {
    fn recommendation(&self) -> AccessRequestOpened {
        match &self.copy.entries[self.recommended].event {
            Event::AccessRequestOpened(f) => f.clone(),
            other => panic!("no recommendation: {other:?}"),
        }
    }

    fn issued(&self, at: usize) -> TokenIssued {
        match &self.copy.entries[at].event {
            Event::TokenIssued(f) => f.clone(),
            other => panic!("no mint: {other:?}"),
        }
    }

    /// Appends an event whose entry advances, rests on and claims what its kind must, at the right versions.
    fn append(&self, copy: &mut JournalCopy, event: Event) -> usize {
        let show = self.b.broker.show();
        let rule = show.entry_rule(&event).expect("a rule");
        let version = |stream: Stream| (stream.clone(), show.version(&stream));
        let reads = rule.reads.into_iter();
        let read_only = reads.filter(|stream| !rule.advances.contains(stream));
        let last = copy.entries.last().expect("not empty");
        let entry = Entry {
            index: last.index + 1,
            read_set: read_only.map(version).collect(),
            write_set: rule.advances.iter().cloned().map(version).collect(),
            claims: rule.claims,
            event,
            ..last.clone()
        };
        copy.entries.push(entry);
        copy.entries.len() - 1
    }
}

/// A forger's change: the entry that it forges.
type Forge = fn(&History, &mut JournalCopy) -> usize;

/// A mint that consumes the recommendation, otherwise as `issued`.
fn executing(h: &History, mut issued: TokenIssued) -> TokenIssued {
    let opened = h.recommendation();
    issued.action = Arc::new(opened.action);
    issued.consumed = Some(opened.access_request);
    issued.uses = opened.uses;
    issued.approval = Some(Arc::new(ApprovalClaim {
        access_request: opened.access_request,
        profiles: vec![ProfileName::parse("one-security").expect("profile")],
        at: issued.iat,
    }));
    another(issued)
}

/// Another token id and idempotency key of a mint.
fn another(mut issued: TokenIssued) -> TokenIssued {
    issued.jti = TokenId::from_random([7; 16]);
    issued.idempotency_key = IdempotencyKey::parse("another").expect("key");
    issued
}

fn freeze(scope: &str, by: &str) -> Event {
    Event::Frozen(Frozen {
        scope: FreezeScope::parse(scope).expect("scope"),
        by: person_id(by),
        reason: None,
    })
}

/// Another bundle in force, by an operator or as a recovery.
fn policy(copy: &mut JournalCopy, by: Option<&str>, recovery: Option<bool>) -> Event {
    let mut files = crate::support::soc();
    files.insert("rules/90-more.cedar".to_owned(), String::new());
    let files = dipylon::policy::BundleFiles::new(files).expect("files");
    Event::PolicyApplied(PolicyApplied {
        proposal: None,
        version: copy.put_blob(files.canonical()),
        by: by.map(person_id),
        recovery: recovery.map(|operators_lost| OperatorRecovery {
            reason: RecoveryReason::parse("none").expect("reason"),
            host_user: HostUser::claimed(0, None, None),
            operators_lost,
        }),
        returning: Default::default(),
    })
}

/// A bundle in force by a proposal.
fn agreed(h: &History, copy: &mut JournalCopy, version: Option<Digest>) -> usize {
    let Event::PolicyApplied(mut applied) = policy(copy, Some("olga"), None) else {
        panic!("no bundle")
    };
    applied.proposal = Some(h.proposed);
    applied.version = version.unwrap_or(applied.version);
    h.append(copy, Event::PolicyApplied(applied))
}

fn lockdown() -> FactName {
    FactName::parse("lockdown").expect("fact")
}

/// A fact set by olga, which is safe for an hour at most, or back to normal, as the bundle declares it.
fn set_fact(h: &History, value: bool, seconds: Option<i64>) -> FactSet {
    let rules = h.b.broker.show().rules().expect("in force");
    let declared = rules.bundle.fact(&lockdown()).expect("declared");
    let at = h.copy.entries.last().expect("not empty").at;
    FactSet {
        fact: lockdown(),
        value,
        until: seconds.map(|seconds| at.plus_secs(seconds)),
        declared: declared.digest(),
        by: person_id("olga"),
        reason: None,
        proposal: None,
    }
}

/// What the approved request requires, on record again for this one.
fn reassessed(h: &History, copy: &mut JournalCopy, access_request: AccessRequestId) -> usize {
    let decision = h.issued(h.approved).decision;
    let again = AccessRequestReassessed {
        access_request,
        decision,
    };
    h.append(copy, Event::AccessRequestReassessed(again))
}

const FORGERIES: &[(&str, Forge, &str)] = &[
    (
        "a fact that is not safe by one hand",
        |h, copy| h.append(copy, Event::FactSet(set_fact(h, false, None))),
        "no proposal is named",
    ),
    (
        "a fact that is set by the proposal of a bundle",
        |h, copy| {
            let mut set = set_fact(h, false, None);
            set.proposal = Some(h.proposed);
            h.append(copy, Event::FactSet(set))
        },
        "a proposal of something else",
    ),
    (
        "a fact for longer than the bundle says",
        |h, copy| h.append(copy, Event::FactSet(set_fact(h, true, Some(3_601)))),
        "for too long",
    ),
    (
        "a safe fact that one hand ends earlier",
        |h, copy| h.append(copy, Event::FactSet(set_fact(h, true, Some(1)))),
        "for a shorter time",
    ),
    (
        "a fact without an end",
        |h, copy| h.append(copy, Event::FactSet(set_fact(h, true, None))),
        "for too long",
    ),
    (
        "a fact that the bundle declares otherwise",
        |h, copy| {
            let mut set = set_fact(h, true, Some(60));
            set.declared = Digest::sha256(b"other");
            h.append(copy, Event::FactSet(set))
        },
        "does not declare the fact lockdown so",
    ),
    (
        "a token that outlives the value of a fact",
        |h, copy| {
            let mut issued = another(h.issued(h.read));
            issued.decision.input.facts.insert(lockdown(), true);
            issued.exp = issued.iat + 700;
            h.append(copy, Event::TokenIssued(issued))
        },
        "outlives the value of lockdown",
    ),
    (
        "a request with a delay that no rule can have",
        |h, copy| {
            let Event::AccessRequestOpened(opened) = &mut copy.entries[h.asked].event else {
                panic!("no request")
            };
            let AccessRequester::Agent(by) = &mut opened.requester else {
                panic!("not an agent's")
            };
            by.decision.delay = Some(Delay {
                seconds: 59,
                needs: Vec::new(),
            });
            h.asked
        },
        "has a delay that no rule asks for",
    ),
    (
        "a delay after which somebody else is asked",
        |h, copy| {
            let Event::AccessRequestOpened(opened) = &mut copy.entries[h.asked].event else {
                panic!("no request")
            };
            let AccessRequester::Agent(by) = &mut opened.requester else {
                panic!("not an agent's")
            };
            let needs = by.decision.required_profiles.clone();
            by.decision.delay = Some(Delay { seconds: 60, needs });
            h.asked
        },
        "has a delay that no rule asks for",
    ),
    (
        "a token that says it waited",
        |h, copy| {
            let mut issued = another(h.issued(h.read));
            issued.decision.input.facts.insert(lockdown(), true);
            issued.decision.input.waited_ms = 600_000;
            h.append(copy, Event::TokenIssued(issued))
        },
        "a delay without an access request",
    ),
    (
        "a token that waited for a request without a delay",
        |h, copy| {
            let Event::TokenIssued(issued) = &mut copy.entries[h.approved].event else {
                panic!("no mint")
            };
            issued.decision.input.waited_ms = 1;
            h.approved
        },
        "did not wait for 1 ms",
    ),
    (
        "a token that rests on a count of before",
        |h, copy| {
            let mut issued = another(h.issued(h.read));
            issued.decision.input.facts.insert(lockdown(), true);
            h.append(copy, Event::TokenIssued(issued))
        },
        "says that reads/agent:triage was 0; it was 1",
    ),
    (
        "a token that rests on a count of the future",
        |h, copy| {
            let mut issued = another(h.issued(h.read));
            issued.decision.input.facts.insert(lockdown(), true);
            issued.decision.input.now = issued.decision.input.now.plus_secs(7_200);
            h.append(copy, Event::TokenIssued(issued))
        },
        "was decided after its entry",
    ),
    (
        "a token that rests on a count that there is not",
        |h, copy| {
            let mut issued = another(h.issued(h.read));
            issued.decision.input.facts.insert(lockdown(), true);
            let name = CountName::parse("others").expect("count");
            issued.decision.input.counts.insert(name, 0);
            h.append(copy, Event::TokenIssued(issued))
        },
        "no count others is declared",
    ),
    (
        "a token that raises no count",
        |h, copy| {
            let mut issued = another(h.issued(h.read));
            issued.decision.input.facts.insert(lockdown(), true);
            let at = h.append(copy, Event::TokenIssued(issued));
            let is_count = |(stream, _): &(Stream, Version)| matches!(stream, Stream::Count(_));
            copy.entries[at].write_set.retain(|moved| !is_count(moved));
            at
        },
        "it must advance count:reads/agent:triage",
    ),
    (
        "a token that rests on a fact of before",
        |h, copy| {
            let issued = another(h.issued(h.read));
            h.append(copy, Event::TokenIssued(issued))
        },
        "rests on another value of lockdown than that of now",
    ),
    (
        "a recovery that rests on a proposal",
        |h, copy| {
            let Event::PolicyApplied(mut applied) = policy(copy, None, Some(true)) else {
                panic!("no bundle")
            };
            applied.proposal = Some(h.proposed);
            h.append(copy, Event::PolicyApplied(applied))
        },
        "a recovery of the operators rests on no proposal",
    ),
    (
        "a bundle without the proposal that others agree to",
        |h, copy| {
            let applied = policy(copy, Some("olga"), None);
            h.append(copy, applied)
        },
        "no proposal is named",
    ),
    (
        "a bundle that too few people agreed to",
        |h, copy| {
            let show = h.b.broker.show();
            let request = show.access_request(&h.proposed).expect("known");
            let by = request.opened.by_person().expect("a proposal");
            let (bundle, _) = by.bundle().expect("of a bundle");
            agreed(h, copy, Some(*bundle))
        },
        "too few approvals",
    ),
    (
        "another bundle than the proposed one",
        |h, copy| agreed(h, copy, None),
        "a proposal of something else",
    ),
    (
        "a token of an advisory agent",
        |h, copy| {
            let opened = h.recommendation();
            let by = opened.by_agent().expect("an agent's");
            let task = h.b.broker.show().task(&by.task).expect("open");
            let mut issued = another(h.issued(h.executes));
            (issued.task, issued.agent) = (by.task, by.agent.clone());
            issued.cnf = task.opened.binding;
            issued.subject = by.evidence.subject.clone();
            h.append(copy, Event::TokenIssued(issued))
        },
        "assistant is advisory",
    ),
    (
        "a recommendation that another agent executes",
        |h, copy| {
            let issued = executing(h, h.issued(h.read));
            h.append(copy, Event::TokenIssued(issued))
        },
        "it is no recommendation to this agent",
    ),
    (
        "a recommendation that is executed without its approvals",
        |h, copy| {
            let mut issued = executing(h, h.issued(h.executes));
            issued.approval = None;
            h.append(copy, Event::TokenIssued(issued))
        },
        "lacks approvals that",
    ),
    (
        "an advisory agent that asks for a token of its own",
        |h, copy| {
            let mut opened = h.recommendation();
            opened.access_request = AccessRequestId::from_random([7; 16]);
            opened.action.target = Target::parse("Account", "cara").expect("target");
            if let AccessRequester::Agent(by) = &mut opened.requester {
                by.executor = None;
                by.decision.input.executor = None;
                by.idempotency_key = IdempotencyKey::parse("another").expect("key");
            }
            h.append(copy, Event::AccessRequestOpened(opened))
        },
        "asks for a token and is advisory, or the reverse",
    ),
    (
        "a reassessment of a request that is consumed",
        |h, copy| {
            let consumed = h.issued(h.approved).consumed.expect("a request");
            reassessed(h, copy, consumed)
        },
        "is not pending",
    ),
    (
        "a reassessment of a proposal",
        |h, copy| reassessed(h, copy, h.proposed),
        "is a proposal",
    ),
    (
        "a bundle that nobody put in force",
        |h, copy| {
            let applied = policy(copy, None, None);
            h.append(copy, applied)
        },
        "no operator ordered it",
    ),
    (
        "a recovery while an operator can act",
        |h, copy| {
            let applied = policy(copy, None, Some(false));
            h.append(copy, applied)
        },
        "a recovery of operators who can change the bundle",
    ),
    (
        "a recovery by an operator",
        |h, copy| {
            let applied = policy(copy, Some("olga"), Some(true));
            h.append(copy, applied)
        },
        "a recovery of the operators is not olga's to order",
    ),
    (
        "a second mint from a consumed approval",
        |h, copy| h.append(copy, Event::TokenIssued(another(h.issued(h.approved)))),
        "was consumed by",
    ),
    (
        "the same, with nothing that it rests on or advances",
        |h, copy| {
            let at = h.append(copy, Event::TokenIssued(another(h.issued(h.approved))));
            copy.entries[at].read_set.clear();
            copy.entries[at].write_set.clear();
            at
        },
        "it must advance",
    ),
    (
        "a mint under an idempotency key that has a token",
        |h, copy| {
            let mut issued = h.issued(h.read);
            issued.jti = TokenId::from_random([7; 16]);
            h.append(copy, Event::TokenIssued(issued))
        },
        "the idempotency key read of",
    ),
    (
        "a mint with the id of another",
        |h, copy| {
            let mut issued = h.issued(h.read);
            issued.idempotency_key = IdempotencyKey::parse("another").expect("key");
            h.append(copy, Event::TokenIssued(issued))
        },
        "is known",
    ),
    (
        "a mint that rests on nothing",
        |h, copy| {
            copy.entries[h.read].read_set.clear();
            h.read
        },
        "it must rest on",
    ),
    (
        "a mint that does not rest on its agent",
        |h, copy| {
            let agent = Stream::Agent(agent_id("triage"));
            copy.entries[h.read].read_set.retain(|(s, _)| *s != agent);
            h.read
        },
        "it must rest on agent:triage",
    ),
    (
        "a mint that advances nothing",
        |h, copy| {
            copy.entries[h.read].write_set.clear();
            h.read
        },
        "it must advance",
    ),
    (
        "a mint that advances another stream",
        |h, copy| {
            let other = Stream::Person(person_id("lee"));
            copy.entries[h.read].write_set.push((other, 0));
            h.read
        },
        "it must not advance person:lee",
    ),
    (
        "a mint that advances a stream twice",
        |h, copy| {
            let again = copy.entries[h.read].write_set[0].clone();
            copy.entries[h.read].write_set.push(again);
            h.read
        },
        "twice",
    ),
    (
        "a mint that claims",
        |h, copy| {
            let counter = Counter::OpenTasks(agent_id("triage"));
            copy.entries[h.read].claims.push(Claim {
                counter,
                ceiling: 1_000,
            });
            h.read
        },
        "expected the claims []",
    ),
    (
        "an opening of a task without its claim",
        |h, copy| {
            copy.entries[h.opened].claims.clear();
            h.opened
        },
        "expected the claims",
    ),
    (
        "an opening of an access request with a higher ceiling",
        |h, copy| {
            copy.entries[h.asked].claims[0].ceiling += 1;
            h.asked
        },
        "expected the claims",
    ),
    (
        "an end of a task that has ended",
        |h, copy| {
            let tasks = vec![h.ended];
            let (cause, outcome, by) = (EndCause::Completed, None, None);
            let end = TaskEnded {
                tasks,
                cause,
                outcome,
                by,
            };
            h.append(copy, Event::TaskEnded(end))
        },
        "has ended",
    ),
    (
        "a mint in a task that has ended",
        |h, copy| {
            let mut issued = another(h.issued(h.read));
            issued.task = h.ended;
            h.append(copy, Event::TokenIssued(issued))
        },
        "has ended",
    ),
    (
        "a mint that ends before it begins",
        |h, copy| {
            let mut issued = another(h.issued(h.read));
            issued.exp = issued.iat;
            h.append(copy, Event::TokenIssued(issued))
        },
        "has no lifetime",
    ),
    (
        "a mint that outlives its task",
        |h, copy| {
            let mut issued = another(h.issued(h.read));
            issued.exp += 100_000;
            h.append(copy, Event::TokenIssued(issued))
        },
        "outlives its task",
    ),
    (
        "a freeze of what is frozen",
        |h, copy| h.append(copy, freeze("action/case.note", "olga")),
        "action/case.note is frozen",
    ),
    (
        "an order of a person who is no operator",
        |h, copy| h.append(copy, freeze("all", "maria")),
        "maria",
    ),
];

/// What `audit verify` says of a data directory that it does not find whole.
fn audit(dir: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dipylon"));
    command.args(["audit", "verify", "--data-dir"]).arg(dir);
    let output = command.output().expect("runs");
    assert!(!output.status.success());
    String::from_utf8(output.stderr).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_entry_is_refused_by_number() {
    let history = history().await;
    let b = &history.b;
    let temp = tempfile::tempdir().expect("dir");
    let key = SigningKey::generate().expect("key").1;
    let start = async |dir: &Path| {
        let faults = FaultInjection::default();
        let started = open_as(settings(), &b.env, dir, &b.clock, &key, faults).await;
        started.map(drop).map_err(|error| error.to_string())
    };
    for (n, (what, forge, why)) in FORGERIES.iter().enumerate() {
        let mut copy = history.copy.clone();
        let at = forge(&history, &mut copy);
        let dir = temp.path().join(n.to_string());
        copy.store(b, &dir);
        let expected = format!("entry {at} is not legal: ");
        let started = start(&dir).await.expect_err(what);
        for found in [audit(&dir), started] {
            let is_named = found.contains(&expected) && found.contains(why);
            assert!(is_named, "{what}: {found}");
        }
    }
    // The same copy, unchanged.
    let dir = temp.path().join("whole");
    history.copy.store(b, &dir);
    start(&dir).await.expect("starts");
}

/// A token that silence let through has the approvals that the card asked for to the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_by_silence_lacks_no_approval() {
    let b = crate::delays::collected().await;
    let mut copy = JournalCopy::read(&b);
    let at = copy.find(|e| matches!(e, Event::TokenIssued(f) if f.decision.input.waited_ms > 0));
    let Event::TokenIssued(issued) = &mut copy.entries[at].event else {
        panic!("no mint")
    };
    issued.approval = None;
    let temp = tempfile::tempdir().expect("dir");
    let dir = temp.path().join("forged");
    copy.store(&b, &dir);
    let found = audit(&dir);
    assert!(found.contains("lacks approvals that"), "{found}");
}
