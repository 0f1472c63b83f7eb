//! Votes prove themselves, long after and without the broker: whatever is changed in what is on record of one, however
//! consistently the rest is rewritten, is found and named by its entry.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dipylon::audit::{AuditError, Frontier, Votes, VotesChecked, WrongVote, leaf_hash};
use dipylon::broker::VoteInput;
use dipylon::journal::{Faults, ReadOnly};
use dipylon::model::*;
use dipylon::policy::BundleFiles;
use rusqlite::Connection;
use serde_json::{Value, json};

use super::harness::*;
use super::passkey::{Manners, SoftPasskey};

/// Everything on record, in hand to be changed.
#[derive(Clone)]
struct Record {
    entries: Vec<Entry>,
    blobs: HashMap<Digest, Arc<str>>,
}

impl Record {
    fn of(b: &TestBroker) -> Self {
        let journal = ReadOnly::open(&b.dir).expect("journal");
        let (mut entries, mut blobs) = (Vec::new(), HashMap::new());
        let all = journal.all(|stored| {
            entries.push(Entry::parse(&stored.text).expect("entry"));
            Ok(())
        });
        all.expect("readable");
        let read = journal.blobs(|name, content| {
            blobs.insert(name, content.into());
            Ok(())
        });
        read.expect("readable");
        Self { entries, blobs }
    }

    fn votes(&self) -> Result<VotesChecked, AuditError> {
        let mut votes = Votes::default();
        for entry in &self.entries {
            let blob = |name: &Digest| Ok::<_, AuditError>(self.blobs.get(name).cloned());
            votes.entry(entry, blob)?;
        }
        Ok(votes.checked().clone())
    }

    /// Where the only fact of this kind stands for which the test holds.
    fn find(&self, is: impl Fn(&Event) -> bool) -> usize {
        let mut found = self.entries.iter().enumerate().filter(|(_, e)| is(&e.fact));
        let (at, _) = found.next().expect("there");
        assert!(found.next().is_none(), "once");
        at
    }

    fn vote(&mut self, at: usize) -> &mut VoteCast {
        match &mut self.entries[at].fact {
            Event::VoteCast(f) => f,
            other => panic!("no vote: {other:?}"),
        }
    }

    fn put(&mut self, text: &str) -> Digest {
        let name = Digest::of(text.as_bytes());
        self.blobs.insert(name, text.into());
        name
    }

    /// Writes the statement of a vote anew, and its name into the entry.
    fn restate(&mut self, at: usize, change: impl FnOnce(&mut VoteStatement)) {
        let name = self.vote(at).statement;
        let mut statement = VoteStatement::parse(&self.blobs[&name]).expect("statement");
        change(&mut statement);
        let text = statement.canonical().expect("canonical");
        self.vote(at).statement = self.put(&text);
    }

    /// The same with the evidence of a vote by passkey.
    fn reword(&mut self, at: usize, change: impl FnOnce(&mut Value)) {
        let name = self.vote(at).assertion.expect("by passkey");
        let mut evidence: Value = serde_json::from_str(&self.blobs[&name]).expect("JSON");
        change(&mut evidence);
        let text = dipylon::model::json::canonical(&evidence).expect("canonical");
        self.vote(at).assertion = Some(self.put(&text));
    }
}

/// What a forger does to one.
type Change<T> = fn(&mut T);

/// A changed record, and the entry that must be named.
struct Forgery<'a> {
    whole: &'a Record,
    at: usize,
}

impl Forgery<'_> {
    /// What the audit says of the vote after the change.
    fn found(&self, change: impl FnOnce(&mut Record, usize)) -> WrongVote {
        let mut record = self.whole.clone();
        change(&mut record, self.at);
        match record.votes() {
            Err(AuditError::Vote { why, .. }) => why,
            other => panic!("not found, or not as a vote: {other:?}"),
        }
    }

    /// The same, and it names the vote's own entry.
    fn found_here(&self, change: impl FnOnce(&mut Record, usize)) -> WrongVote {
        let mut record = self.whole.clone();
        change(&mut record, self.at);
        match record.votes() {
            Err(AuditError::Vote { index, why }) => {
                assert_eq!(index, record.entries[self.at].index);
                why
            }
            other => panic!("not found, or not as a vote: {other:?}"),
        }
    }
}

struct History {
    b: TestBroker,
    marias: SoftPasskey,
    by_passkey: usize,
    by_key: usize,
    no: usize,
}

/// A note voted for by passkey (its text is sensitive), an account by key, and a no.
async fn history() -> History {
    let mut world = World::new();
    world
        .policy
        .get_mut("rules/20-guardrails.cedar")
        .expect("policy")
        .push_str(
            "\n@id(\"notes-need-a-yes\")\n@why(\"For this story.\")\n@step_up(\"one-security\")\nforbid (principal, action == Action::\"case.note\", resource)\nunless { context.approvals.contains(StepUp::\"one-security\") };\n",
        );
    let b = TestBroker::start_with(world, Faults::default()).await;
    let marias = b.enrol("maria").await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let note = action(
        "case.note",
        "Case",
        "INC-8841",
        CASES,
        &[("text", Param::Str("seen by nobody else".to_owned()))],
    );
    let asked = |action: Action, request: &'static str| {
        let (b, triage) = (&b, &triage);
        async move { b.ask(triage, task, &action, 300, request).await }
    };
    let id = asked(note.clone(), "r-1").await.pending().access_request;
    let session = b.sign_in(&marias).await.expect("signed in");
    let ask = VoteInput {
        narrowing: Narrowing {
            max_ttl: Some(120),
            max_uses: Some(3),
        },
        ..super::step_up::yes()
    };
    let cast = b.vote_visiting(&session, &marias, id, ask).await;
    cast.expect("counts");
    asked(note, "r-1").await.token();
    let id = asked(disable("ann"), "r-2").await.pending().access_request;
    b.yes("lee", id, "one-security").await;
    asked(disable("ann"), "r-2").await.token();
    let id = asked(disable("cara"), "r-3").await.pending().access_request;
    let cast = b.vote("lee", id, "one-security", Verdict::Deny).await;
    cast.expect("counts");
    b.complete(&triage, task).await.expect("ends");
    let record = Record::of(&b);
    let by_passkey = record.find(|f| matches!(f, Event::VoteCast(v) if v.assertion.is_some()));
    let by_key = |verdict| {
        record.find(
            |f| matches!(f, Event::VoteCast(v) if v.assertion.is_none() && v.verdict == verdict),
        )
    };
    let (by_key, no) = (by_key(Verdict::Approve), by_key(Verdict::Deny));
    History {
        b,
        marias,
        by_passkey,
        by_key,
        no,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_changed_of_a_vote_is_found() {
    let History {
        b,
        marias,
        by_passkey,
        by_key,
        no,
    } = history().await;
    let whole = Record::of(&b);
    let checked = whole.votes().expect("all prove what they say");
    assert_eq!((checked.by_key, checked.by_passkey), (2, 1));
    assert_eq!(
        checked.origins.iter().collect::<Vec<_>>(),
        [CONSOLE],
        "the origin is in the evidence"
    );
    for at in [by_passkey, by_key, no] {
        let forgery = Forgery { whole: &whole, at };
        // The entry alone.
        let entries: [(&str, Change<VoteCast>); 5] = [
            ("verdict", |f| {
                f.verdict = match f.verdict {
                    Verdict::Approve => Verdict::Deny,
                    Verdict::Deny => Verdict::Approve,
                }
            }),
            ("longest life", |f| f.max_ttl += 1),
            ("number of uses", |f| f.uses = Some(9)),
            ("end of its life", |f| {
                f.not_after = f.not_after.plus_secs(1)
            }),
            ("access request", |f| {
                f.access_request = AccessRequestId::from_random([9; 16])
            }),
        ];
        for (what, change) in entries {
            let found = forgery.found_here(|r, at| change(r.vote(at)));
            assert!(
                matches!(found, WrongVote::Differs(which) if which == what),
                "{what}: {found}"
            );
        }
        assert!(matches!(
            forgery.found_here(|r, at| r.vote(at).profile.digest = Digest::of(b"x")),
            WrongVote::Profile
        ));
        assert!(matches!(
            forgery.found_here(|r, at| r.vote(at).voter = PersonId::parse("dana").expect("id")),
            WrongVote::Key
        ));
        assert!(matches!(
            forgery.found_here(|r, at| r.vote(at).voter = PersonId::parse("nobody").expect("id")),
            WrongVote::Stranger
        ));
        assert!(matches!(
            forgery.found_here(|r, at| r.vote(at).key = Thumbprint(Digest::of(b"x"))),
            WrongVote::Key
        ));
        assert!(matches!(
            forgery.found_here(|r, at| r.vote(at).signature = "!".to_owned()),
            WrongVote::Signature
        ));
        // The statement and the entry together: nobody signed that.
        let statements: [Change<VoteStatement>; 3] = [
            |s| s.nonce = URL_SAFE_NO_PAD.encode([1; 16]),
            |s| s.policy = Digest::of(b"x"),
            |s| s.comment = Some(Comment::parse("go ahead").expect("comment")),
        ];
        for change in statements {
            let found = forgery.found_here(|r, at| r.restate(at, change));
            assert!(
                matches!(found, WrongVote::Signature | WrongVote::Passkey(_)),
                "{found}"
            );
        }
        let shorter = forgery.found_here(|r, at| {
            r.restate(at, |s| s.max_ttl -= 1);
            r.vote(at).max_ttl -= 1;
        });
        assert!(
            matches!(shorter, WrongVote::Signature | WrongVote::Passkey(_)),
            "{shorter}"
        );
        // A statement of something that was not asked.
        let asked: [(&str, Change<VoteStatement>); 5] = [
            ("agent", |s| s.agent = AgentId::parse("ci").expect("id")),
            ("owner", |s| s.owner = PersonId::parse("lee").expect("id")),
            ("task", |s| s.task = TaskId::from_random([9; 16])),
            ("task key", |s| s.task_key = Thumbprint(Digest::of(b"x"))),
            ("action", |s| s.action["target"]["id"] = json!("INC-1")),
        ];
        for (what, change) in asked {
            let found = forgery.found_here(|r, at| r.restate(at, change));
            assert!(
                matches!(found, WrongVote::AskedElse(which) if which == what),
                "{what}: {found}"
            );
        }
        let longer = forgery.found_here(|r, at| {
            r.restate(at, |s| s.max_ttl = 10_000);
            r.vote(at).max_ttl = 10_000;
        });
        assert!(matches!(longer, WrongVote::AskedElse("longest life")));
        assert!(matches!(
            forgery.found_here(
                |r, at| r.restate(at, |s| s.realm = Realm::parse("other").expect("realm"))
            ),
            WrongVote::Differs("realm")
        ));
        assert!(matches!(
            forgery.found_here(|r, at| r.restate(at, |s| s.profile.digest = Digest::of(b"x"))),
            WrongVote::Differs("profile")
        ));
        // A statement that is none.
        assert!(matches!(
            forgery.found_here(|r, at| {
                let none = r.put("{}");
                r.vote(at).statement = none;
            }),
            WrongVote::Statement
        ));
        // What was asked, changed after the vote: the vote no longer fits it.
        let request = match &whole.entries[at].fact {
            Event::VoteCast(f) => f.access_request,
            _ => unreachable!(),
        };
        let opened = whole
            .find(|f| matches!(f, Event::AccessRequestOpened(o) if o.access_request == request));
        let asked: [fn(&mut AccessRequestOpened); 4] = [
            |f| f.agent = AgentId::parse("ci").expect("id"),
            |f| f.action.target.id = "INC-1".to_owned(),
            |f| f.max_ttl = 1,
            |f| f.uses = Some(1),
        ];
        for (n, change) in asked.into_iter().enumerate() {
            // One use is what account.disable had all along.
            if n == 3 && at != by_passkey {
                continue;
            }
            let found = forgery.found_here(|r, _| match &mut r.entries[opened].fact {
                Event::AccessRequestOpened(f) => change(f),
                _ => unreachable!(),
            });
            assert!(matches!(found, WrongVote::AskedElse(_)), "{n}: {found}");
        }
        assert!(matches!(
            forgery.found(|r, _| drop(r.entries.remove(opened))),
            WrongVote::NotAsked
        ));
        // The same vote again, after what it decided was over.
        assert!(matches!(
            forgery.found(|r, at| {
                let again = r.entries[at].clone();
                r.entries.push(again);
            }),
            WrongVote::NotAsked
        ));
        // The rules of the day, changed: another voter's key, and nobody's.
        let policy = whole.find(|f| matches!(f, Event::PolicyApplied(_)));
        let bundle = |r: &mut Record, change: &dyn Fn(&str) -> String| {
            let mut files = b.world.policy.clone();
            let people = files.get_mut("people.toml").expect("people");
            let changed = change(people);
            assert_ne!(*people, changed);
            *people = changed;
            let files = BundleFiles::new(files).expect("files");
            let version = r.put(files.canonical());
            match &mut r.entries[policy].fact {
                Event::PolicyApplied(f) => f.version = version,
                _ => unreachable!(),
            }
        };
        assert!(matches!(
            forgery.found(|r, _| bundle(r, &|text| text.replace("quorum = 1", "quorum = 2"))),
            WrongVote::Profile
        ));
        assert!(matches!(
            forgery.found(|r, _| bundle(r, &|text| format!("{text}\nbroken"))),
            WrongVote::Stranger
        ));
        // A key that was revoked before.
        let revoked = forgery.found_here(|r, at| {
            let mut before = r.entries[at].clone();
            let cast = r.vote(at).clone();
            before.fact = Event::ApproverKeysRevoked(ApproverKeysRevoked {
                person: cast.voter,
                keys: vec![cast.key],
                cause: RevokeCause::Counter,
                by: None,
            });
            r.entries.insert(at, before);
        });
        assert!(matches!(revoked, WrongVote::Key), "{revoked}");
        // Content under another's name, and content that is gone.
        let statement = |r: &mut Record| r.vote(at).statement;
        let mut record = whole.clone();
        let name = statement(&mut record);
        record.blobs.insert(name, "{}".into());
        assert!(matches!(record.votes(), Err(AuditError::BlobChanged(n)) if n == name));
        record.blobs.remove(&name);
        assert!(
            matches!(record.votes(), Err(AuditError::BlobMissing { first, .. }) if first == name)
        );
    }

    // A vote by key.
    for at in [by_key, no] {
        let forgery = Forgery { whole: &whole, at };
        let bent = forgery.found_here(|r, at| {
            let mut signature = URL_SAFE_NO_PAD
                .decode(&r.vote(at).signature)
                .expect("base64url");
            signature[7] ^= 1;
            r.vote(at).signature = URL_SAFE_NO_PAD.encode(signature);
        });
        assert!(matches!(bent, WrongVote::Signature), "{bent}");
        assert!(matches!(
            forgery.found_here(|r, at| r.vote(at).sign_count = Some(1)),
            WrongVote::NoEvidence
        ));
        assert!(matches!(
            forgery.found_here(|r, at| {
                let elsewhere = r.vote(by_passkey).assertion;
                r.vote(at).assertion = elsewhere;
            }),
            WrongVote::Key
        ));
    }

    // A vote by passkey.
    let forgery = Forgery {
        whole: &whole,
        at: by_passkey,
    };
    assert!(matches!(
        forgery.found_here(|r, at| r.vote(at).sign_count = Some(99)),
        WrongVote::Differs("signature counter")
    ));
    assert!(matches!(
        forgery.found_here(|r, at| r.vote(at).sign_count = None),
        WrongVote::Differs("signature counter")
    ));
    assert!(matches!(
        forgery.found_here(|r, at| r.vote(at).assertion = None),
        WrongVote::NoEvidence | WrongVote::Key
    ));
    for member in ["authenticator_data", "client_data_json", "credential"] {
        for place in [0, 20] {
            let found = forgery.found_here(|r, at| {
                r.reword(at, |evidence| {
                    let mut bytes = URL_SAFE_NO_PAD
                        .decode(evidence[member].as_str().expect("text"))
                        .expect("base64url");
                    bytes[place] ^= 1;
                    evidence[member] = json!(URL_SAFE_NO_PAD.encode(bytes));
                })
            });
            let fits = match member {
                "credential" => matches!(found, WrongVote::Key),
                _ => matches!(found, WrongVote::Passkey(_)),
            };
            assert!(fits, "{member} {place}: {found}");
        }
    }
    assert!(matches!(
        forgery.found_here(|r, at| r.reword(at, |evidence| evidence["more"] = json!(1))),
        WrongVote::Evidence(_)
    ));
    // The right key, another challenge; the right challenge, another key; a user who was not verified.
    let resigned = |assertion: dipylon::webauthn::Assertion| {
        forgery.found_here(|r, at| {
            let evidence = assertion.evidence().expect("evidence");
            let name = r.put(&evidence);
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
    let (other, _) = SoftPasskey::create("localhost", CONSOLE, &[1; 32], &[1; 16]);
    let unverified = Manners {
        verified: false,
        ..Manners::default()
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
            matches!(&found, WrongVote::Key if key)
                || matches!(&found, WrongVote::Passkey(_) if !key),
            "{found}"
        );
    }
    // The enrolment, taken out, made after the vote, or made for another.
    let enrolled = whole.find(|f| matches!(f, Event::ApproverEnrolled(_)));
    assert!(matches!(
        forgery.found(|r, _| drop(r.entries.remove(enrolled))),
        WrongVote::Key
    ));
    assert!(matches!(
        forgery.found(|r, _| {
            let entry = r.entries.remove(enrolled);
            r.entries.push(entry);
        }),
        WrongVote::Key
    ));
    let enrolment = |change: &dyn Fn(&mut ApproverEnrolled)| {
        forgery.found_here(|r, _| match &mut r.entries[enrolled].fact {
            Event::ApproverEnrolled(f) => change(f),
            _ => unreachable!(),
        })
    };
    assert!(matches!(
        enrolment(&|f| f.person = PersonId::parse("lee").expect("id")),
        WrongVote::Key
    ));
    assert!(matches!(
        enrolment(&|f| f.passkey.backup_eligible = false),
        WrongVote::Passkey(_)
    ));
    let another = b.world.keys["lee"].public().to_jwk();
    assert!(matches!(
        enrolment(&|f| f.passkey.jwk = another.clone()),
        WrongVote::Passkey(_)
    ));
    // Nothing of it was changed by any of this.
    assert_eq!(whole.votes().expect("whole"), checked);
    b.check();
}

/// A key registered for the voter signs well, and yet not as the profile wants it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_no_passkey_where_the_profile_says_passkey() {
    let b = TestBroker::start_with(super::step_up::passkeys_alone(), Faults::default()).await;
    let marias = b.enrol("maria").await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let asked = b.ask(&triage, task, &disable("ann"), 300, "r-1").await;
    let id = asked.pending().access_request;
    let session = b.sign_in(&marias).await.expect("signed in");
    let cast = b
        .vote_visiting(&session, &marias, id, super::step_up::yes())
        .await;
    cast.expect("counts");
    let whole = Record::of(&b);
    assert_eq!(whole.votes().expect("proved").by_passkey, 1);
    let forgery = Forgery {
        at: whole.find(|f| matches!(f, Event::VoteCast(_))),
        whole: &whole,
    };
    let key = &b.world.keys["maria"];
    let found = forgery.found_here(|r, at| {
        let name = r.vote(at).statement;
        let statement = VoteStatement::parse(&r.blobs[&name]);
        let digest = statement.expect("statement").digest().expect("digest");
        let vote = r.vote(at);
        (vote.assertion, vote.sign_count) = (None, None);
        vote.key = key.thumbprint();
        let signature = key.sign(digest.as_bytes()).expect("signed");
        vote.signature = URL_SAFE_NO_PAD.encode(signature);
    });
    assert!(matches!(found, WrongVote::NotByPasskey), "{found}");
}

/// The whole machine was somebody's: entries, tree and head fit each other, and no root was noted outside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_verify_finds_a_forged_vote_in_a_journal_that_fits_together() {
    let History { b, by_key, .. } = history().await;
    Connection::open(b.dir.join("journal.db"))
        .and_then(|db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
        .expect("checkpoint");
    let temp = tempfile::tempdir().expect("dir");
    let verify = |change: &dyn Fn(&mut Record)| {
        let dir = temp
            .path()
            .join(URL_SAFE_NO_PAD.encode(rand_u64().to_be_bytes()));
        std::fs::create_dir(&dir).expect("dir");
        std::fs::copy(b.dir.join("journal.db"), dir.join("journal.db")).expect("copy");
        let mut record = Record::of(&b);
        change(&mut record);
        let db = Connection::open(dir.join("journal.db")).expect("opens");
        let mut tree = Frontier::default();
        for entry in &record.entries {
            let text = entry.canonical().expect("canonical");
            let leaf = leaf_hash(text.as_bytes());
            tree.push(leaf);
            db.execute(
                "UPDATE entries SET leaf = ?2, entry = ?3 WHERE idx = ?1",
                (
                    i64::try_from(entry.index).expect("small"),
                    &leaf.as_bytes()[..],
                    &text,
                ),
            )
            .expect("forged");
        }
        let frontier: Vec<u8> = tree.peaks().iter().flat_map(|p| *p.as_bytes()).collect();
        db.execute(
            "UPDATE head SET root = ?1, frontier = ?2",
            (&tree.root().as_bytes()[..], &frontier),
        )
        .expect("forged");
        drop(db);
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
    let told = verify(&|r| r.vote(by_key).voter = PersonId::parse("maria").expect("id"))
        .expect_err("forged");
    assert!(
        told.contains("NOT WHOLE") && told.contains(&format!("entry {by_key} proves nothing")),
        "{told}"
    );
}
