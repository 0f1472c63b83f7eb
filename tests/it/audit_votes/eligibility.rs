//! Votes and grants that are forged with valid signatures: the audit asks again whether the voter could vote and whether the quorum was
//! met, and finds each; and bundles that register what the journal does not permit. The honest history is whole.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dipylon::audit::{AuditError, GrantError, VoteError};
use dipylon::journal::FaultInjection;
use dipylon::policy::BundleFiles;
use dipylon_sdk::model::*;

use super::journal_copy::JournalCopy;
use crate::support::agent_in_task::person_id;
use crate::support::own_key::OwnKey;
use crate::support::*;

/// An account disabled with maria's vote, and a host isolated with those of maria and lee.
struct History {
    b: TestBroker,
    /// Gus is an approver of another group; maria has a second key.
    second: OwnKey,
    copy: JournalCopy,
    /// Maria's vote on the account.
    single: usize,
    /// The grant that rests on it.
    disabled: usize,
    /// The second vote on the host.
    second_of_two: usize,
    /// The grant that rests on both.
    isolated: usize,
}

async fn history() -> History {
    let mut env = TestEnvironment::new();
    let second = OwnKey::generate();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[[person]]\nid = \"gus\"\nname = \"Gus Grant\"\ngroups = [\"network\"]\nroles = [\"approver\"]\n");
    people.push_str(&second.row("maria"));
    env.add_key("gus");
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    let ask = async |action: &Action, key| b.request_token(&triage, task, action, 300, key).await;
    let disable = disable("ann");
    let single = ask(&disable, "r-1").await.pending().access_request;
    let double = ask(&isolate, "r-2").await.pending().access_request;
    b.approve("maria", single, "one-security").await;
    b.approve("maria", double, "two-security").await;
    b.approve("lee", double, "two-security").await;
    b.manual_clock.advance_millis(60_000);
    let disabled = ask(&disable, "r-1").await.token().issued.jti;
    let isolated = ask(&isolate, "r-2").await.token().issued.jti;
    let copy = JournalCopy::read(&b);
    let vote = |id, voter: &str| {
        copy.find(|e| matches!(e, Event::VoteCast(f) if f.access_request == id && f.voter.as_str() == voter))
    };
    let grant = |jti| copy.find(|e| matches!(e, Event::TokenIssued(f) if f.jti == jti));
    History {
        single: vote(single, "maria"),
        second_of_two: vote(double, "lee"),
        disabled: grant(disabled),
        isolated: grant(isolated),
        copy,
        second,
        b,
    }
}

impl History {
    /// A vote as another person's, or with another statement, signed with the key.
    fn sign(
        &self,
        copy: &mut JournalCopy,
        at: usize,
        voter: &str,
        key: &OwnKey,
        change: impl FnOnce(&mut VoteStatement),
    ) {
        copy.rewrite_statement(at, change);
        let name = copy.vote(at).statement;
        let statement = VoteStatement::parse(&copy.blobs[&name]).expect("statement");
        let digest = statement.digest().expect("digest");
        let signature = key.key.sign(digest.as_bytes()).expect("signed");
        let vote = copy.vote(at);
        vote.voter = person_id(voter);
        vote.key = key.key.thumbprint();
        vote.max_ttl = statement.max_ttl;
        vote.uses = statement.uses;
        vote.not_after = Timestamp::from_secs(statement.not_after);
        vote.signature = URL_SAFE_NO_PAD.encode(signature);
    }

    fn vote_as(&self, copy: &mut JournalCopy, at: usize, voter: &str) {
        let key = self.b.env.own_key(voter);
        self.sign(copy, at, voter, &key, |_| {});
        let replaced = |stream: &Stream| matches!(stream, Stream::Person(_));
        let version = |of: &Stream| {
            let before = self.copy.entries[..at].iter().rev();
            let mut advances = before.filter(|entry| entry.write_set.iter().any(|(s, _)| s == of));
            advances.next().map_or(0, |entry| entry.index + 1)
        };
        let stream = Stream::Person(person_id(voter));
        let version = version(&stream);
        for read in &mut copy.entries[at].read_set {
            if replaced(&read.0) {
                *read = (stream.clone(), version);
            }
        }
    }

    fn vote_again_by(&self, copy: &mut JournalCopy, key: &OwnKey) {
        self.sign(copy, self.second_of_two, "maria", key, |_| {});
    }

    fn people(&self, change: impl FnOnce(&str) -> String) -> BundleFiles {
        let files = self.b.env.policy_with("people.toml", |text| {
            let changed = change(text);
            assert_ne!(changed, text);
            changed
        });
        BundleFiles::new(files).expect("files")
    }

    fn without_lee(&self) -> BundleFiles {
        BundleFiles::new(self.b.env.without_person("lee")).expect("files")
    }

    fn without_lees_role(&self) -> BundleFiles {
        BundleFiles::new(self.b.env.without_role("lee")).expect("files")
    }

    /// A bundle under which every action is of high risk, and none needs an approval.
    fn risk_raised(&self) -> BundleFiles {
        let mut files = self.b.env.policy_with("schema.cedarschema", |text| {
            text.replace("@risk(\"medium\")", "@risk(\"high\")")
        });
        files.remove("rules/20-guardrails.cedar").expect("the file");
        // The profiles of `[autonomy]` take passkeys for such a risk.
        let people = files.get_mut("people.toml").expect("people");
        let at = people.find("[profile.one-passkey]").expect("a profile");
        let (before, after) = people.split_at(at);
        let after = after.replace("method = \"key\"", "method = \"passkey\"");
        *people = format!("{before}{after}");
        BundleFiles::new(files).expect("files")
    }

    fn original(&self) -> BundleFiles {
        BundleFiles::new(self.b.env.policy.clone()).expect("files")
    }
}

fn applied(copy: &mut JournalCopy, files: &BundleFiles, returning: &[&str]) -> Event {
    Event::PolicyApplied(PolicyApplied {
        proposal: None,
        version: copy.put_blob(files.canonical()),
        by: Some(person_id("olga")),
        returning: returning.iter().map(|id| person_id(id)).collect(),
        recovery: None,
    })
}

/// Puts events before an entry. The entries are numbered anew.
fn insert(copy: &mut JournalCopy, at: usize, events: Vec<Event>) {
    let like = copy.entries[at - 1].clone();
    let entries = events.into_iter().map(|event| Entry {
        event,
        ..like.clone()
    });
    copy.entries.splice(at..at, entries);
    for (index, entry) in copy.entries.iter_mut().enumerate() {
        entry.index = u64::try_from(index).expect("small");
    }
}

fn grant(copy: &mut JournalCopy, at: usize) -> &mut TokenIssued {
    match &mut copy.entries[at].event {
        Event::TokenIssued(f) => f,
        other => panic!("no grant: {other:?}"),
    }
}

type Forge = fn(&History, &mut JournalCopy) -> usize;

/// (what, the forgery, whose answer is the number of the entry that is wrong, words of the finding)
const VOTES: &[(&str, Forge, &str)] = &[
    (
        "a vote by the agent's owner",
        |h, copy| {
            h.vote_as(copy, h.single, "dana");
            h.single
        },
        "owns an agent",
    ),
    (
        "that rests on other facts than its card showed",
        |h, copy| {
            let facts = copy.put_blob("{}");
            let key = h.b.env.own_key("maria");
            copy.vote(h.single).facts = facts;
            h.sign(copy, h.single, "maria", &key, |s| s.facts = facts);
            h.single
        },
        "another facts",
    ),
    (
        "by a person outside the group",
        |h, copy| {
            h.vote_as(copy, h.single, "gus");
            h.single
        },
        "group",
    ),
    (
        "by a person without the role",
        |h, copy| {
            h.vote_as(copy, h.single, "olga");
            h.single
        },
        "not registered with the role",
    ),
    (
        "twice by one person for a quorum of two",
        |h, copy| {
            h.vote_again_by(copy, &h.b.env.own_key("maria"));
            h.second_of_two
        },
        "has voted",
    ),
    (
        "twice by one person with two keys",
        |h, copy| {
            h.vote_again_by(copy, &h.second);
            h.second_of_two
        },
        "has voted",
    ),
    (
        "with another person's key",
        |h, copy| {
            h.sign(copy, h.second_of_two, "lee", &h.second, |_| {});
            h.second_of_two
        },
        "not an active key",
    ),
    (
        "with a service's key",
        |h, copy| {
            h.sign(copy, h.single, "maria", &h.b.env.own_key("idp"), |_| {});
            h.single
        },
        "not an active key",
    ),
    (
        "with the negative of the voter's key",
        |h, copy| {
            let negated = h.b.env.own_key("maria").negated();
            h.sign(copy, h.single, "maria", &negated, |_| {});
            h.single
        },
        "not an active key",
    ),
    (
        "with a dead key",
        |h, copy| {
            let revoked = Event::ApproverKeysRevoked(ApproverKeysRevoked {
                person: person_id("lee"),
                keys: vec![h.b.env.keys["lee"].thumbprint()],
                all: false,
                cause: RevokeCause::Operator,
                by: Some(person_id("olga")),
                invited: 0,
                unconfirmed: 0,
            });
            insert(copy, h.second_of_two, vec![revoked]);
            h.second_of_two + 1
        },
        "not an active key",
    ),
    (
        "with the key of a task",
        |h, copy| {
            let opened = copy.find(|e| matches!(e, Event::TaskOpened(_)));
            if let Event::TaskOpened(f) = &mut copy.entries[opened].event {
                f.key_identity = h.b.env.keys["lee"].public().identity();
            }
            h.second_of_two
        },
        "not an active key",
    ),
    (
        "by a person who had left",
        |h, copy| {
            let left = applied(copy, &h.without_lee(), &[]);
            insert(copy, h.second_of_two, vec![left]);
            h.second_of_two + 1
        },
        "not registered",
    ),
    (
        "by a person whose role was taken",
        |h, copy| {
            let taken = applied(copy, &h.without_lees_role(), &[]);
            insert(copy, h.second_of_two, vec![taken]);
            h.second_of_two + 1
        },
        "not registered with the role",
    ),
    (
        "by key on an action whose risk takes a passkey",
        |h, copy| {
            let raised = applied(copy, &h.risk_raised(), &[]);
            insert(copy, h.single, vec![raised]);
            h.single + 1
        },
        "its statement has another facts",
    ),
    (
        "after the person came anew, with the key of the former one",
        |h, copy| {
            let left = applied(copy, &h.without_lee(), &[]);
            let row = h.b.env.own_key("lee").row("lee");
            let anew = h.people(|text| text.replace(&row, &OwnKey::generate().row("lee")));
            let anew = applied(copy, &anew, &[]);
            let back = applied(copy, &h.original(), &[]);
            insert(copy, h.second_of_two, vec![left, anew, back]);
            h.second_of_two + 3
        },
        "not an active key",
    ),
];

/// The same of grants.
const GRANTS: &[(&str, Forge, &str)] = &[
    (
        "with too few votes",
        |h, copy| {
            copy.entries.remove(h.second_of_two);
            h.isolated - 1
        },
        "counted then",
    ),
    (
        "that names no approval of an access request that has one",
        |h, copy| {
            grant(copy, h.disabled).approval = None;
            h.disabled
        },
        "counted then",
    ),
    (
        "that outlives what its voter agreed to",
        |h, copy| {
            let key = h.b.env.own_key("maria");
            h.sign(copy, h.single, "maria", &key, |s| s.max_ttl = Some(10));
            h.disabled
        },
        "longer life",
    ),
    (
        "that ends after its votes",
        |h, copy| {
            let key = h.b.env.own_key("maria");
            let minted = copy.entries[h.disabled].at.secs();
            h.sign(copy, h.single, "maria", &key, |s| s.not_after = minted + 20);
            h.disabled
        },
        "later end",
    ),
    (
        "with more uses than its voter agreed to",
        |h, copy| {
            grant(copy, h.disabled).uses = None;
            h.disabled
        },
        "more uses",
    ),
    (
        "whose votes had expired",
        |h, copy| {
            let key = h.b.env.own_key("maria");
            let minted = copy.entries[h.disabled].at.secs();
            h.sign(copy, h.single, "maria", &key, |s| s.not_after = minted);
            h.disabled
        },
        "counted then",
    ),
    (
        "with a vote from before its voter left and returned",
        |h, copy| {
            let left = applied(copy, &h.without_lee(), &[]);
            let back = applied(copy, &h.original(), &["lee"]);
            insert(copy, h.isolated, vec![left, back]);
            h.isolated + 2
        },
        "counted then",
    ),
    (
        "with a vote from before its voter's role was taken and given back",
        |h, copy| {
            let taken = applied(copy, &h.without_lees_role(), &[]);
            let given = applied(copy, &h.original(), &[]);
            insert(copy, h.isolated, vec![taken, given]);
            h.isolated + 2
        },
        "counted then",
    ),
    (
        "with a vote by key on an action whose risk was raised since",
        |h, copy| {
            let raised = applied(copy, &h.risk_raised(), &[]);
            insert(copy, h.disabled, vec![raised]);
            h.disabled + 1
        },
        "counted then",
    ),
    (
        "with a vote by a key revoked since",
        |h, copy| {
            let revoked = Event::ApproverKeysRevoked(ApproverKeysRevoked {
                person: person_id("maria"),
                keys: vec![h.b.env.keys["maria"].thumbprint()],
                all: false,
                cause: RevokeCause::Compromised,
                by: Some(person_id("olga")),
                invited: 0,
                unconfirmed: 0,
            });
            insert(copy, h.disabled, vec![revoked]);
            h.disabled + 1
        },
        "counted then",
    ),
];

/// The same of bundles.
const BUNDLES: &[(&str, Forge, &str)] = &[
    (
        "that gives a person another's key",
        |h, copy| {
            let (row, of_dana) = (
                h.b.env.own_key("lee").row("lee"),
                h.b.env.own_key("lee").row("dana"),
            );
            let files = h.people(|text| text.replace(&row, &of_dana));
            let event = applied(copy, &files, &[]);
            append(copy, event)
        },
        "it is a key of lee",
    ),
    (
        "that gives a validator a person's key, negated",
        |h, copy| {
            let (row, negated) = (
                h.b.env.own_key("lee").row("lee"),
                h.b.env.own_key("lee").negated(),
            );
            let files = h.people(|text| text.replace(&row, &negated.row("idp")));
            let event = applied(copy, &files, &[]);
            append(copy, event)
        },
        "it is a key of lee",
    ),
    (
        "that pins an agent to a person's former key",
        |h, copy| {
            let row = h.b.env.own_key("lee").row("lee");
            let mut files =
                h.b.env
                    .policy_with("people.toml", |text| text.replace(&row, ""));
            let jkt = h.b.env.keys["lee"].thumbprint();
            let agents = files.get_mut("agents.toml").expect("agents");
            *agents = agents.replacen(
                "groups = [\"soc\"]",
                &format!("groups = [\"soc\"]\njkt = \"{jkt}\""),
                1,
            );
            let event = applied(copy, &BundleFiles::new(files).expect("files"), &[]);
            append(copy, event)
        },
        "it is a key of lee",
    ),
    (
        "in which a person of no registration returns",
        |h, copy| {
            let files = h.people(|text| format!("{text}\n# More.\n"));
            let event = applied(copy, &files, &["zoe"]);
            append(copy, event)
        },
        "zoe does not return",
    ),
    (
        "in which a person returns who was there",
        |h, copy| {
            let files = h.people(|text| format!("{text}\n# More.\n"));
            let event = applied(copy, &files, &["lee"]);
            append(copy, event)
        },
        "lee does not return",
    ),
    (
        "in which a person returns whom it drops",
        |h, copy| {
            let event = applied(copy, &h.without_lee(), &["lee"]);
            append(copy, event)
        },
        "lee does not return",
    ),
    (
        "in which a person returns of whom it takes a role",
        |h, copy| {
            let files = h.without_lees_role();
            let event = applied(copy, &files, &["lee"]);
            append(copy, event)
        },
        "lee does not return",
    ),
];

fn append(copy: &mut JournalCopy, event: Event) -> usize {
    let at = copy.entries.len();
    insert(copy, at, vec![event]);
    at
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn votes_and_grants_are_proved_again() {
    let h = history().await;
    let report = h.copy.votes().expect("whole");
    assert_eq!((report.by_key, report.approved_tokens), (3, 2));
    for (what, forge, words) in VOTES {
        let mut copy = h.copy.clone();
        let at = forge(&h, &mut copy);
        match copy.votes() {
            Err(AuditError::Vote { index, why }) => {
                let why: VoteError = why;
                assert_eq!(index, copy.entries[at].index, "{what}: {why}");
                assert!(why.to_string().contains(words), "{what}: {why}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    for (what, forge, words) in GRANTS {
        let mut copy = h.copy.clone();
        let at = forge(&h, &mut copy);
        match copy.votes() {
            Err(AuditError::Grant { index, why }) => {
                let why: GrantError = why;
                assert_eq!(index, copy.entries[at].index, "{what}: {why}");
                assert!(why.to_string().contains(words), "{what}: {why}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    for (what, forge, words) in BUNDLES {
        let mut copy = h.copy.clone();
        let at = forge(&h, &mut copy);
        match copy.votes() {
            Err(AuditError::Registration { index, why }) => {
                assert_eq!(index, copy.entries[at].index, "{what}: {why}");
                assert!(why.contains(words), "{what}: {why}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    // The person who comes anew with a key of their own, and the one who returns: whole.
    let row = h.b.env.own_key("lee").row("lee");
    let anew = h.people(|text| text.replace(&row, &OwnKey::generate().row("lee")));
    for (files, returning) in [(h.original(), vec!["lee"]), (anew, vec![])] {
        let mut copy = h.copy.clone();
        let left = applied(&mut copy, &h.without_lee(), &[]);
        append(&mut copy, left);
        let back = applied(&mut copy, &files, &returning);
        append(&mut copy, back);
        copy.votes().expect("whole");
    }
    h.b.check_invariants();
}

/// The program names the entry, in a journal whose tree and head fit the forgery.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_verify_names_the_ineligible_vote() {
    let h = history().await;
    let temp = tempfile::tempdir().expect("dir");
    let verify = |copy: &JournalCopy, name: &str| {
        let dir = temp.path().join(name);
        copy.store(&h.b, &dir);
        let mut command = Command::new(env!("CARGO_BIN_EXE_dipylon"));
        command.args(["audit", "verify", "--data-dir"]).arg(&dir);
        let output = command.output().expect("runs");
        let error = String::from_utf8(output.stderr).expect("text");
        (output.status.success(), error)
    };
    for voter in ["dana", "gus", "olga"] {
        let mut copy = h.copy.clone();
        h.vote_as(&mut copy, h.single, voter);
        let (is_whole, error) = verify(&copy, voter);
        assert!(
            !is_whole && error.contains(&format!("entry {} ", h.single)),
            "{voter}: {error}"
        );
        // A vote of the owner is no legal entry at all.
        let why = match voter {
            "dana" => "on a request of their own",
            _ => "would not have counted then",
        };
        assert!(error.contains(why), "{voter}: {error}");
    }
    let mut copy = h.copy.clone();
    grant(&mut copy, h.disabled).approval = None;
    let (is_whole, error) = verify(&copy, "grant");
    assert!(
        !is_whole && error.contains(&format!("entry {} ", h.disabled)),
        "{error}"
    );
    let (is_whole, error) = verify(&h.copy, "whole");
    assert!(is_whole, "{error}");
}
