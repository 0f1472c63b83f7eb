//! Offline vote verification: any change of a stored vote, even with the rest of the journal rewritten consistently, is
//! detected and attributed to its entry.

mod eligibility;
pub mod journal_copy;

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dipylon::audit::{AuditError, VoteError};
use dipylon::broker::VoteInput;
use dipylon::journal::FaultInjection;
use dipylon::policy::BundleFiles;
use dipylon_sdk::model::*;
use serde_json::{Value, json};

use crate::audit_votes::journal_copy::{Forgery, JournalCopy};
use crate::support::agent_in_task::person_id;
use crate::support::passkey_votes::{approve, passkeys_alone};
use crate::support::software_authenticator::{PasskeyBehaviour, SoftwareAuthenticator};
use crate::support::*;

/// A forger's change.
type Change<T> = fn(&mut T);

/// Changes members of a statement's requester, an agent.
fn change_requester(
    statement: &mut VoteStatement,
    change: impl FnOnce(&mut AgentId, &mut PersonId, &mut TaskId, &mut Thumbprint),
) {
    match &mut statement.requester {
        StatementRequester::Agent {
            id,
            owner,
            task,
            task_key,
        } => change(id, owner, task, task_key),
        StatementRequester::Recommendation { .. } | StatementRequester::Person { .. } => {
            panic!("the statement is about an agent that asks for a token")
        }
    }
}

fn by_agent(opened: &mut AccessRequestOpened) -> &mut AgentRequester {
    match &mut opened.requester {
        AccessRequester::Agent(by) => by,
        AccessRequester::Person(_) => panic!("the request is an agent's"),
    }
}

struct VotedHistory {
    b: TestBroker,
    marias: SoftwareAuthenticator,
    by_passkey: usize,
    by_key: usize,
    denial: usize,
}

/// A note approved by passkey (its text is sensitive), an account approved by key, and a denial.
async fn history() -> VotedHistory {
    let mut env = TestEnvironment::new();
    env
        .policy
        .get_mut("rules/20-guardrails.cedar")
        .expect("policy")
        .push_str(
            "\n@id(\"notes-need-a-yes\")\n@why(\"For this story.\")\n@step_up(\"one-security\")\nforbid (principal, action == Action::\"case.note\", resource)\nunless { context.approvals.contains(StepUp::\"one-security\") };\n",
        );
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    let marias = b.enrol("maria").await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let note = action(
        "case.note",
        "Case",
        "INC-8841",
        CASES,
        &[("text", Param::Str("sensitive text".to_owned()))],
    );
    let request = |action: Action, idempotency_key: &'static str| {
        let (b, triage) = (&b, &triage);
        async move {
            b.request_token(triage, task, &action, 300, idempotency_key)
                .await
        }
    };
    let id = request(note.clone(), "r-1").await.pending().access_request;
    let session = b.sign_in(&marias).await.expect("signed in");
    let ask = VoteInput {
        narrowing: Narrowing {
            max_ttl: Some(120),
            max_uses: Some(3),
        },
        ..approve()
    };
    let cast = b.vote_in_session(&session, &marias, id, ask).await;
    cast.expect("counts");
    request(note, "r-1").await.token();
    let id = request(disable("ann"), "r-2")
        .await
        .pending()
        .access_request;
    b.approve("lee", id, "one-security").await;
    request(disable("ann"), "r-2").await.token();
    let id = request(disable("cara"), "r-3")
        .await
        .pending()
        .access_request;
    let cast = b.vote("lee", id, "one-security", Verdict::Deny).await;
    cast.expect("counts");
    b.complete_task(&triage, task).await.expect("ends");
    let record = JournalCopy::read(&b);
    let by_passkey = record.find(|f| matches!(f, Event::VoteCast(v) if v.assertion.is_some()));
    let by_key = |verdict| {
        record.find(
            |f| matches!(f, Event::VoteCast(v) if v.assertion.is_none() && v.verdict == verdict),
        )
    };
    let (by_key, denial) = (by_key(Verdict::Approve), by_key(Verdict::Deny));
    VotedHistory {
        b,
        marias,
        by_passkey,
        by_key,
        denial,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vote_tampering_is_detected() {
    let VotedHistory {
        b,
        marias,
        by_passkey,
        by_key,
        denial,
    } = history().await;
    let whole = JournalCopy::read(&b);
    let checked = whole.votes().expect("all votes verify");
    assert_eq!((checked.by_key, checked.by_passkey), (2, 1));
    assert_eq!(
        checked.origins.iter().collect::<Vec<_>>(),
        [CONSOLE],
        "the origin is in the assertion"
    );
    for at in [by_passkey, by_key, denial] {
        let forgery = Forgery { whole: &whole, at };
        // Only the entry changed.
        let entries: [(&str, Change<VoteCast>); 5] = [
            ("verdict", |f| {
                f.verdict = match f.verdict {
                    Verdict::Approve => Verdict::Deny,
                    Verdict::Deny => Verdict::Approve,
                }
            }),
            ("longest life", |f| f.max_ttl = f.max_ttl.map(|ttl| ttl + 1)),
            ("number of uses", |f| f.uses = Some(9)),
            ("end of its life", |f| {
                f.not_after = f.not_after.plus_secs(1)
            }),
            ("access request", |f| {
                f.access_request = AccessRequestId::from_random([9; 16])
            }),
        ];
        for (what, change) in entries {
            let found = forgery.rejected_at_vote(|r, at| change(r.vote(at)));
            assert!(
                matches!(found, VoteError::EntryMismatch(which) if which == what),
                "{what}: {found}"
            );
        }
        assert!(matches!(
            forgery.rejected_at_vote(|r, at| r.vote(at).profile.digest = Digest::sha256(b"x")),
            VoteError::ProfileMismatch
        ));
        assert!(matches!(
            forgery
                .rejected_at_vote(|r, at| r.vote(at).voter = PersonId::parse("dana").expect("id")),
            VoteError::KeyNotActive
        ));
        assert!(matches!(
                forgery.rejected_at_vote(
                    |r, at| r.vote(at).voter = PersonId::parse("nobody").expect("id")
                ),
                VoteError::VoterUnknown
            ));
        assert!(matches!(
            forgery.rejected_at_vote(|r, at| r.vote(at).key = Thumbprint(Digest::sha256(b"x"))),
            VoteError::KeyNotActive
        ));
        assert!(matches!(
            forgery.rejected_at_vote(|r, at| r.vote(at).signature = "!".to_owned()),
            VoteError::Signature
        ));
        // Statement and entry changed together: the signature does not cover that.
        let statements: [Change<VoteStatement>; 3] = [
            |s| s.nonce = URL_SAFE_NO_PAD.encode([1; 16]),
            |s| s.policy = Digest::sha256(b"x"),
            |s| s.comment = Some(Comment::parse("go ahead").expect("comment")),
        ];
        for change in statements {
            let found = forgery.rejected_at_vote(|r, at| r.rewrite_statement(at, change));
            assert!(
                matches!(found, VoteError::Signature | VoteError::Passkey(_)),
                "{found}"
            );
        }
        let shorter = forgery.rejected_at_vote(|r, at| {
            r.rewrite_statement(at, |s| s.max_ttl = s.max_ttl.map(|ttl| ttl - 1));
            let vote = r.vote(at);
            vote.max_ttl = vote.max_ttl.map(|ttl| ttl - 1);
        });
        assert!(
            matches!(shorter, VoteError::Signature | VoteError::Passkey(_)),
            "{shorter}"
        );
        // A statement about something that was not requested.
        let changes: [(&str, Change<VoteStatement>); 6] = [
            ("requester", |s| {
                change_requester(s, |id, _, _, _| *id = AgentId::parse("ci").expect("id"))
            }),
            ("requester", |s| {
                change_requester(s, |_, owner, _, _| *owner = person_id("lee"))
            }),
            ("requester", |s| {
                change_requester(s, |_, _, task, _| *task = TaskId::from_random([9; 16]))
            }),
            ("requester", |s| {
                change_requester(s, |_, _, _, key| *key = Thumbprint(Digest::sha256(b"x")))
            }),
            ("requester", |s| {
                s.requester = StatementRequester::Person {
                    id: person_id("lee"),
                }
            }),
            ("action", |s| s.action.target.id = "INC-1".to_owned()),
        ];
        for (what, change) in changes {
            let found = forgery.rejected_at_vote(|r, at| r.rewrite_statement(at, change));
            assert!(
                matches!(found, VoteError::RequestMismatch(which) if which == what),
                "{what}: {found}"
            );
        }
        let longer = forgery.rejected_at_vote(|r, at| {
            r.rewrite_statement(at, |s| s.max_ttl = Some(10_000));
            r.vote(at).max_ttl = Some(10_000);
        });
        assert!(matches!(longer, VoteError::RequestMismatch("longest life")));
        assert!(matches!(
            forgery.rejected_at_vote(|r, at| r
                .rewrite_statement(at, |s| s.realm = Realm::parse("other").expect("realm"))),
            VoteError::EntryMismatch("realm")
        ));
        assert!(matches!(
            forgery.rejected_at_vote(
                |r, at| r.rewrite_statement(at, |s| s.profile.digest = Digest::sha256(b"x"))
            ),
            VoteError::EntryMismatch("profile")
        ));
        // A statement that does not parse.
        assert!(matches!(
            forgery.rejected_at_vote(|r, at| {
                let none = r.put_blob("{}");
                r.vote(at).statement = none;
            }),
            VoteError::Statement
        ));
        // The access request changed after the vote: the vote no longer matches it.
        let request = match &whole.entries[at].event {
            Event::VoteCast(f) => f.access_request,
            _ => unreachable!(),
        };
        let opened = whole
            .find(|f| matches!(f, Event::AccessRequestOpened(o) if o.access_request == request));
        let changes: [fn(&mut AccessRequestOpened); 4] = [
            |f| by_agent(f).agent = AgentId::parse("ci").expect("id"),
            |f| f.action.target.id = "INC-1".to_owned(),
            |f| f.max_ttl = Some(1),
            |f| f.uses = Some(1),
        ];
        for (n, change) in changes.into_iter().enumerate() {
            // account.disable has one use by default.
            if n == 3 && at != by_passkey {
                continue;
            }
            let found = forgery.rejected_at_vote(|r, _| match &mut r.entries[opened].event {
                Event::AccessRequestOpened(f) => change(f),
                _ => unreachable!(),
            });
            assert!(
                matches!(found, VoteError::RequestMismatch(_)),
                "{n}: {found}"
            );
        }
        assert!(matches!(
            forgery.rejected(|r, _| drop(r.entries.remove(opened))),
            VoteError::RequestNotPending
        ));
        // The same vote again, after the request was decided.
        assert!(matches!(
            forgery.rejected(|r, at| {
                let again = r.entries[at].clone();
                r.entries.push(again);
            }),
            VoteError::RequestNotPending
        ));
        // The policy in force changed: another voter's key, and no key.
        let policy = whole.find(|f| matches!(f, Event::PolicyApplied(_)));
        let bundle = |r: &mut JournalCopy, change: &dyn Fn(&str) -> String| {
            let mut files = b.env.policy.clone();
            let people = files.get_mut("people.toml").expect("people");
            let changed = change(people);
            assert_ne!(*people, changed);
            *people = changed;
            let files = BundleFiles::new(files).expect("files");
            let version = r.put_blob(files.canonical());
            match &mut r.entries[policy].event {
                Event::PolicyApplied(f) => f.version = version,
                _ => unreachable!(),
            }
        };
        assert!(matches!(
            forgery.rejected(|r, _| bundle(r, &|text| text.replace("quorum = 1", "quorum = 2"))),
            VoteError::ProfileMismatch
        ));
        assert!(matches!(
            forgery.rejected(|r, _| bundle(r, &|text| format!("{text}\nbroken"))),
            VoteError::VoterUnknown
        ));
        // A key revoked before the vote.
        let revoked = forgery.rejected_at_vote(|r, at| {
            let mut before = r.entries[at].clone();
            let cast = r.vote(at).clone();
            before.event = Event::ApproverKeysRevoked(ApproverKeysRevoked {
                person: cast.voter,
                keys: vec![cast.key],
                all: false,
                cause: RevokeCause::Counter,
                by: None,
                invited: 0,
                unconfirmed: 0,
            });
            r.entries.insert(at, before);
        });
        assert!(matches!(revoked, VoteError::KeyNotActive), "{revoked}");
        // A blob under another digest, and a missing blob.
        let statement = |r: &mut JournalCopy| r.vote(at).statement;
        let mut record = whole.clone();
        let name = statement(&mut record);
        record.blobs.insert(name, "{}".into());
        assert!(matches!(record.votes(), Err(AuditError::BlobChanged(n)) if n == name));
        record.blobs.remove(&name);
        assert!(
            matches!(record.votes(), Err(AuditError::BlobMissing { first, .. }) if first == name)
        );
    }

    // A key vote.
    for at in [by_key, denial] {
        let forgery = Forgery { whole: &whole, at };
        let bent = forgery.rejected_at_vote(|r, at| {
            let mut signature = URL_SAFE_NO_PAD
                .decode(&r.vote(at).signature)
                .expect("base64url");
            signature[7] ^= 1;
            r.vote(at).signature = URL_SAFE_NO_PAD.encode(signature);
        });
        assert!(matches!(bent, VoteError::Signature), "{bent}");
        assert!(matches!(
            forgery.rejected_at_vote(|r, at| r.vote(at).sign_count = Some(1)),
            VoteError::NoEvidence
        ));
        assert!(matches!(
            forgery.rejected_at_vote(|r, at| {
                let elsewhere = r.vote(by_passkey).assertion;
                r.vote(at).assertion = elsewhere;
            }),
            VoteError::KeyNotActive
        ));
    }

    // A passkey vote.
    let forgery = Forgery {
        whole: &whole,
        at: by_passkey,
    };
    assert!(matches!(
        forgery.rejected_at_vote(|r, at| r.vote(at).sign_count = Some(99)),
        VoteError::EntryMismatch("signature counter")
    ));
    assert!(matches!(
        forgery.rejected_at_vote(|r, at| r.vote(at).sign_count = None),
        VoteError::EntryMismatch("signature counter")
    ));
    assert!(matches!(
        forgery.rejected_at_vote(|r, at| r.vote(at).assertion = None),
        VoteError::NoEvidence | VoteError::KeyNotActive
    ));
    for member in ["authenticator_data", "client_data_json", "credential"] {
        for place in [0, 20] {
            let found = forgery.rejected_at_vote(|r, at| {
                r.rewrite_assertion(at, |evidence| {
                    let mut bytes = URL_SAFE_NO_PAD
                        .decode(evidence[member].as_str().expect("text"))
                        .expect("base64url");
                    bytes[place] ^= 1;
                    evidence[member] = json!(URL_SAFE_NO_PAD.encode(bytes));
                })
            });
            let fits = match member {
                "credential" => matches!(found, VoteError::KeyNotActive),
                _ => matches!(found, VoteError::Passkey(_)),
            };
            assert!(fits, "{member} {place}: {found}");
        }
    }
    assert!(matches!(
        forgery.rejected_at_vote(
            |r, at| r.rewrite_assertion(at, |evidence| evidence["more"] = json!(1))
        ),
        VoteError::Evidence(_)
    ));
    // The right key and another challenge; the right challenge and another key; no user verification.
    let resigned = |assertion: dipylon::webauthn::Assertion| {
        forgery.rejected_at_vote(|r, at| {
            let evidence = assertion.evidence().expect("evidence");
            let name = r.put_blob(&evidence);
            let vote = r.vote(at);
            vote.assertion = Some(name);
            vote.signature = URL_SAFE_NO_PAD.encode(&assertion.signature);
        })
    };
    let digest = {
        let mut record = whole.clone();
        let name = record.vote(by_passkey).statement;
        let statement = VoteStatement::parse(&record.blobs[&name]).expect("statement");
        statement.digest().expect("digest")
    };
    let (other, _) = SoftwareAuthenticator::create("localhost", CONSOLE, &[1; 32], &[1; 16]);
    let unverified = PasskeyBehaviour {
        verified: false,
        ..PasskeyBehaviour::default()
    };
    for (assertion, key) in [
        (marias.get(&[1; 32], CONSOLE), false),
        (
            marias.get_as(digest.as_bytes(), CONSOLE, &unverified),
            false,
        ),
        (other.get(digest.as_bytes(), CONSOLE), true),
        (marias.get(digest.as_bytes(), "https://evil.example"), false),
    ] {
        let found = resigned(assertion);
        assert!(
            matches!(&found, VoteError::KeyNotActive if key)
                || matches!(&found, VoteError::Passkey(_) if !key),
            "{found}"
        );
    }
    // The enrolment removed, moved after the vote, or made for another person.
    let enrolled = whole.find(|f| matches!(f, Event::ApproverEnrolled(_)));
    assert!(matches!(
        forgery.rejected(|r, _| drop(r.entries.remove(enrolled))),
        VoteError::KeyNotActive
    ));
    assert!(matches!(
        forgery.rejected(|r, _| {
            let entry = r.entries.remove(enrolled);
            r.entries.push(entry);
        }),
        VoteError::KeyNotActive
    ));
    let enrolment = |change: &dyn Fn(&mut ApproverEnrolled)| {
        forgery.rejected_at_vote(|r, _| match &mut r.entries[enrolled].event {
            Event::ApproverEnrolled(f) => change(f),
            _ => unreachable!(),
        })
    };
    assert!(matches!(
        enrolment(&|f| f.person = PersonId::parse("lee").expect("id")),
        VoteError::KeyNotActive
    ));
    assert!(matches!(
        enrolment(&|f| f.passkey.backup_eligible = false),
        VoteError::Passkey(_)
    ));
    let another = b.env.keys["lee"].public().to_jwk();
    assert!(matches!(
        enrolment(&|f| f.passkey.jwk = another.clone()),
        VoteError::KeyNotActive
    ));
    // The original is unchanged.
    assert_eq!(whole.votes().expect("whole"), checked);
    b.check_invariants();
}

/// A key vote with a valid signature, under a profile that requires a passkey.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_vote_fails_a_passkey_profile() {
    let b = TestBroker::start_with(passkeys_alone(), FaultInjection::default()).await;
    let marias = b.enrol("maria").await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let reply = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await;
    let id = reply.pending().access_request;
    let session = b.sign_in(&marias).await.expect("signed in");
    let cast = b.vote_in_session(&session, &marias, id, approve()).await;
    cast.expect("counts");
    let whole = JournalCopy::read(&b);
    assert_eq!(whole.votes().expect("proved").by_passkey, 1);
    let forgery = Forgery {
        at: whole.find(|f| matches!(f, Event::VoteCast(_))),
        whole: &whole,
    };
    let key = &b.env.keys["maria"];
    let found = forgery.rejected_at_vote(|r, at| {
        let name = r.vote(at).statement;
        let statement = VoteStatement::parse(&r.blobs[&name]);
        let digest = statement.expect("statement").digest().expect("digest");
        let vote = r.vote(at);
        (vote.assertion, vote.sign_count) = (None, None);
        vote.key = key.thumbprint();
        let signature = key.sign(digest.as_bytes()).expect("signed");
        vote.signature = URL_SAFE_NO_PAD.encode(signature);
    });
    assert!(matches!(found, VoteError::PasskeyRequired), "{found}");
}

/// An attacker rewrote entries, tree and head consistently, and there is no external checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_verify_detects_forged_vote_in_consistent_journal() {
    let VotedHistory { b, by_key, .. } = history().await;
    let temp = tempfile::tempdir().expect("dir");
    let verify = |change: &dyn Fn(&mut JournalCopy)| {
        let dir = temp
            .path()
            .join(URL_SAFE_NO_PAD.encode(rand_u64().to_be_bytes()));
        let mut record = JournalCopy::read(&b);
        change(&mut record);
        record.store(&b, &dir);
        let output = Command::new(env!("CARGO_BIN_EXE_dipylon"))
            .args(["audit", "verify", "--json", "--data-dir"])
            .arg(&dir)
            .output()
            .expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr) + &text(&output.stdout)),
        }
    };
    let whole: Value = serde_json::from_str(&verify(&|_| {}).expect("whole")).expect("JSON");
    assert_eq!(
        whole["votes"],
        json!({ "by_key": 2, "by_passkey": 1, "origins": [CONSOLE] })
    );
    // A bundle that this version cannot load is named, not the entries that look illegal for want of it.
    let output = verify(&|r| {
        let mut files = b.env.policy.clone();
        files.insert("people.toml".to_owned(), "broken".to_owned());
        let files = BundleFiles::new(files).expect("files");
        let version = r.put_blob(files.canonical());
        let applied = r.find(|event| matches!(event, Event::PolicyApplied(_)));
        match &mut r.entries[applied].event {
            Event::PolicyApplied(f) => f.version = version,
            _ => unreachable!(),
        }
    });
    let output = output.expect_err("a bundle that does not load");
    assert!(
        output.contains("an entry that this version cannot use: policy bundle"),
        "{output}"
    );
    let maria = PersonId::parse("maria").expect("id");
    let forge = |r: &mut JournalCopy| r.vote(by_key).voter = maria.clone();
    // The forged vote does not rest on the keys of its voter.
    let output = verify(&forge).expect_err("forged");
    assert!(
        output.contains("journal verification failed")
            && output.contains(&format!("entry {by_key} is not legal"))
            && output.contains("it must rest on person:maria"),
        "{output}"
    );
    // It does, and its key is still another person's.
    let keys = Stream::Person(maria.clone());
    let forge_whole = |r: &mut JournalCopy| {
        let before = r.entries[..by_key].iter().rev();
        let advances = |entry: &&Entry| entry.write_set.iter().any(|(stream, _)| *stream == keys);
        let version = before
            .clone()
            .find(advances)
            .map_or(0, |entry| entry.index + 1);
        r.entries[by_key].read_set.push((keys.clone(), version));
        forge(r);
    };
    let output = verify(&forge_whole).expect_err("forged");
    assert!(
        output.contains("journal verification failed")
            && output.contains(&format!("entry {by_key} is not legal"))
            && output.contains("it is a key of lee"),
        "{output}"
    );
}
