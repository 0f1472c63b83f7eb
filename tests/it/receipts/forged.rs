//! Receipts that the broker's own key signed and that are still refused: the tree and both signatures fit, and the record does not.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dipylon::audit::{BlockRoots, Frontier, InclusionPaths, ReceiptPart, TokenReceipt, leaf_hash};
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;
use serde_json::json;

use super::Receipts;

/// A forged receipt and the part that is refused.
pub struct Forgery {
    pub what: &'static str,
    pub part: ReceiptPart,
    pub text: String,
}

fn signature(key: &SigningKey, digest: Digest) -> String {
    URL_SAFE_NO_PAD.encode(key.sign(digest.as_bytes()).expect("signs"))
}

/// Signs a receipt again as it stands.
fn sign(receipt: &mut TokenReceipt, key: &SigningKey) -> String {
    receipt.signature = signature(key, receipt.digest().expect("digest"));
    receipt.canonical().expect("canonical")
}

/// Builds a tree with the receipt's entries where they stand, and signs checkpoint and receipt.
fn rebuild(receipt: &mut TokenReceipt, key: &SigningKey) -> String {
    let size = receipt.checkpoint.size;
    let leaf = |index: u64| {
        let entry = receipt.entries.iter().find(|entry| entry.index == index);
        entry.map_or(Digest::sha256(b"another entry"), |entry| {
            leaf_hash(entry.entry.as_bytes())
        })
    };
    let leaves: Vec<Digest> = (0..size).map(leaf).collect();
    let (mut blocks, mut tree) = (BlockRoots::default(), Frontier::default());
    for leaf in &leaves {
        blocks.push(*leaf);
        tree.push(*leaf);
    }
    receipt.checkpoint.root = tree.root();
    let at = |index: u64| usize::try_from(index).expect("small");
    let read =
        |range: std::ops::Range<u64>| Ok::<_, ()>(leaves[at(range.start)..at(range.end)].to_vec());
    let mut paths = InclusionPaths::new(size, &blocks, read);
    for entry in &mut receipt.entries {
        entry.path = paths.path(entry.index).expect("reads");
    }
    let digest = receipt
        .checkpoint
        .digest(&receipt.realm, &receipt.issuer)
        .expect("digest");
    receipt.checkpoint.signature = signature(key, digest);
    sign(receipt, key)
}

/// Changes the event of the entry of this kind that comes first.
fn change(receipt: &mut TokenReceipt, kind: &str, edit: impl FnOnce(&mut Entry)) {
    let is_kind = |text: &str| Entry::parse(text).expect("an entry").event.kind() == kind;
    let stored = receipt
        .entries
        .iter_mut()
        .find(|entry| is_kind(&entry.entry));
    let stored = stored.unwrap_or_else(|| panic!("no {kind}"));
    let mut entry = Entry::parse(&stored.entry).expect("an entry");
    edit(&mut entry);
    stored.entry = entry.canonical().expect("canonical");
}

fn change_issue(receipt: &mut TokenReceipt, edit: impl FnOnce(&mut TokenIssued)) {
    change(receipt, "TokenIssued", |entry| match &mut entry.event {
        Event::TokenIssued(f) => edit(f),
        other => panic!("{}", other.kind()),
    });
}

fn change_vote(receipt: &mut TokenReceipt, edit: impl FnOnce(&mut VoteCast)) {
    change(receipt, "VoteCast", |entry| match &mut entry.event {
        Event::VoteCast(f) => edit(f),
        other => panic!("{}", other.kind()),
    });
}

fn change_executor(receipt: &mut TokenReceipt, edit: impl FnOnce(&mut Executor)) {
    change(receipt, "AccessRequestOpened", |entry| {
        if let Event::AccessRequestOpened(f) = &mut entry.event
            && let AccessRequester::Agent(by) = &mut f.requester
        {
            edit(by.executor.as_mut().expect("a recommendation"));
        }
    });
}

fn id<T>(text: &str, parse: fn(&str) -> Result<T, ParseError>) -> T {
    parse(text).expect("an id")
}

fn without(receipt: &mut TokenReceipt, kind: &str) {
    let is_kind = |text: &str| Entry::parse(text).expect("an entry").event.kind() == kind;
    let at = receipt
        .entries
        .iter()
        .position(|entry| is_kind(&entry.entry));
    receipt
        .entries
        .remove(at.unwrap_or_else(|| panic!("no {kind}")));
}

/// Receipts that are rebuilt and signed again without a change: what refuses the others is the change.
pub fn honest(receipts: &Receipts) -> Vec<String> {
    let key = receipts.served.signing_key();
    let kinds = receipts.texts.iter().map(|(kind, _)| *kind);
    kinds
        .map(|kind| rebuild(&mut receipts.of(kind), &key))
        .collect()
}

pub fn all(receipts: &Receipts) -> Vec<Forgery> {
    use ReceiptPart::{Checkpoint, Entries, Inclusion, Token, Votes};
    let key = receipts.served.signing_key();
    let (plain, by_key, two) = ("no step-up", "by key, reissued, used", "by two");
    let recommended = "recommended";
    let other = receipts.of(plain);
    let early = TokenReceipt::parse(&receipts.early).expect("a receipt");
    let mut all = Vec::new();
    // Signed again, with the tree as it was.
    type Change<'a> = &'a dyn Fn(&mut TokenReceipt);
    let signed: &[(&str, &str, ReceiptPart, Change<'_>)] = &[
        ("a checkpoint of another realm", plain, Checkpoint, &|r| {
            r.realm = Realm::parse("prod").expect("a realm");
        }),
        ("a checkpoint of another issuer", plain, Checkpoint, &|r| {
            r.issuer.push('x')
        }),
        ("a larger checkpoint", plain, Checkpoint, &|r| {
            r.checkpoint.size += 1
        }),
        ("the proof of another tree", two, Inclusion, &|r| {
            r.entries[1].path = early.entries[1].path.clone()
        }),
        ("a path with one hash more", plain, Inclusion, &|r| {
            let step = r.entries[1].path[0];
            r.entries[1].path.push(step);
        }),
        ("a changed entry", by_key, Inclusion, &|r| {
            change_issue(r, |f| f.exp += 60)
        }),
        ("an entry twice", plain, Entries, &|r| {
            r.entries.push(r.entries[2].clone())
        }),
        ("the order of entries", plain, Entries, &|r| {
            r.entries.swap(1, 2)
        }),
        ("the proof of a vote taken out", two, Votes, &|r| {
            drop(r.votes.remove(0))
        }),
        ("the proofs of votes swapped", two, Votes, &|r| {
            let (first, second) = (r.votes[0].index, r.votes[1].index);
            r.votes.swap(0, 1);
            (r.votes[0].index, r.votes[1].index) = (first, second);
        }),
        ("another statement", by_key, Votes, &|r| {
            r.votes[0].statement = "{}".to_owned()
        }),
        ("the statement of another vote", two, Votes, &|r| {
            r.votes[0].statement = r.votes[1].statement.clone()
        }),
        ("a lower risk that was shown", by_key, Votes, &|r| {
            r.votes[0].facts = r.votes[0].facts.replace("\"risk\":\"", "\"risk\":\"not ");
        }),
        ("facts that are none", "sensitive", Votes, &|r| {
            r.votes[0].facts = "{}".to_owned()
        }),
        ("said to be by passkey", by_key, Votes, &|r| {
            r.votes[0].method = VoteMethod::Passkey;
        }),
        ("said to be by key", "by passkey", Votes, &|r| {
            r.votes[0].method = VoteMethod::Key;
        }),
        ("another person's key", by_key, Votes, &|r| {
            let other = SigningKey::generate().expect("key").0;
            r.votes[0].jwk = Some(other.public().to_jwk());
        }),
        ("another assertion", "by passkey", Votes, &|r| {
            r.votes[0].assertion = Some("{}".to_owned())
        }),
        ("a smaller quorum", two, Token, &|r| {
            r.profiles[0].quorum = 1
        }),
        ("no profile", by_key, Token, &|r| r.profiles.clear()),
        ("uses said to be left out", by_key, Entries, &|r| {
            r.uses_omitted = true
        }),
        ("the receipt of another token", plain, Entries, &|r| {
            r.jti = receipts.of(two).jti
        }),
    ];
    for (what, kind, part, edit) in signed {
        let mut receipt = receipts.of(kind);
        edit(&mut receipt);
        let text = sign(&mut receipt, &key);
        all.push(Forgery {
            what,
            part: *part,
            text,
        });
    }
    // The tree rebuilt around the change.
    let rebuilt: &[(&str, &str, ReceiptPart, Change<'_>)] = &[
        ("a journal of another realm", plain, Entries, &|r| {
            r.realm = Realm::parse("prod").expect("a realm")
        }),
        ("a vote taken out", two, Entries, &|r| {
            without(r, "VoteCast");
            r.votes.remove(0);
        }),
        (
            "the opening of the request taken out",
            by_key,
            Entries,
            &|r| without(r, "AccessRequestOpened"),
        ),
        (
            "the enrolment of a passkey taken out",
            "by passkey",
            Entries,
            &|r| without(r, "ApproverEnrolled"),
        ),
        ("a reissue taken out", by_key, Entries, &|r| {
            without(r, "TokenReissued")
        }),
        ("the task taken out", plain, Entries, &|r| {
            without(r, "TaskOpened")
        }),
        ("the policy bundle taken out", plain, Entries, &|r| {
            without(r, "PolicyApplied")
        }),
        ("the issue taken out", plain, Entries, &|r| {
            without(r, "TokenIssued")
        }),
        ("another policy bundle", plain, Entries, &|r| {
            change_issue(r, |f| f.decision.policy = Digest::sha256(b"policy"));
        }),
        ("another task", plain, Entries, &|r| {
            change_issue(r, |f| f.task = TaskId::from_random([9; 16]))
        }),
        ("the end of another task", "ended", Entries, &|r| {
            change(r, "TaskEnded", |entry| {
                if let Event::TaskEnded(f) = &mut entry.event {
                    f.tasks = vec![TaskId::from_random([9; 16])];
                }
            });
        }),
        ("the use of another token", by_key, Entries, &|r| {
            change(r, "TokenConsumed", |entry| {
                if let Event::TokenConsumed(f) = &mut entry.event {
                    f.jti = TokenId::from_random([9; 16]);
                }
            });
        }),
        ("an entry of another token", by_key, Entries, &|r| {
            let issue = other
                .entries
                .iter()
                .find(|entry| entry.entry.contains("TokenIssued"));
            r.entries.push(issue.expect("an issue").clone());
            r.entries.sort_by_key(|entry| entry.index);
        }),
        ("another action than was approved", by_key, Entries, &|r| {
            change_issue(r, |f| {
                let action = crate::support::disable("bob");
                let mut no_salt = || [0; 16];
                f.action = action
                    .on_record(&std::collections::BTreeSet::new(), &mut no_salt)
                    .0
                    .into();
            });
        }),
        (
            "a longer life in the entry of a vote",
            by_key,
            Votes,
            &|r| change_vote(r, |f| f.max_ttl = f.max_ttl.map(|ttl| ttl + 1)),
        ),
        ("an approval for a denial", by_key, Votes, &|r| {
            change_vote(r, |f| f.verdict = Verdict::Deny)
        }),
        ("a later end in the entry of a vote", by_key, Votes, &|r| {
            change_vote(r, |f| f.not_after = f.not_after.plus_secs(1));
        }),
        ("the vote of another person", "by passkey", Entries, &|r| {
            change_vote(r, |f| f.voter = PersonId::parse("dana").expect("a person"));
        }),
        ("another counter", "by passkey", Votes, &|r| {
            change_vote(r, |f| f.sign_count = f.sign_count.map(|count| count + 1));
        }),
        ("a statement of another task key", by_key, Entries, &|r| {
            change(r, "TaskOpened", |entry| {
                if let Event::TaskOpened(f) = &mut entry.event {
                    f.binding = Binding::Jkt(Thumbprint(Digest::sha256(b"key")));
                }
            });
        }),
        ("a longer token than its limits", plain, Token, &|r| {
            change_issue(r, |f| f.exp += 1)
        }),
        ("a longer token than its votes", by_key, Token, &|r| {
            change_issue(r, |f| {
                f.requested_ttl = 9_000;
                f.decision.ttl = TtlBreakdown {
                    requested: 9_000,
                    limits: Vec::new(),
                    granted: 9_000,
                };
                f.exp = f.iat + 9_000;
            });
        }),
        ("more uses than were approved", by_key, Token, &|r| {
            change_issue(r, |f| f.uses = Some(9))
        }),
        ("fewer uses than were made", by_key, Token, &|r| {
            change_issue(r, |f| f.uses = Some(0))
        }),
        ("another action digest", plain, Token, &|r| {
            change_issue(r, |f| {
                let mut action = (*f.action).clone();
                action.digest = Digest::sha256(b"action");
                f.action = action.into();
            });
        }),
        ("the owner's own vote", by_key, Token, &|r| {
            change(r, "AccessRequestOpened", |entry| {
                if let Event::AccessRequestOpened(f) = &mut entry.event {
                    let AccessRequester::Agent(by) = &mut f.requester else {
                        panic!("the request of an agent");
                    };
                    by.owner = PersonId::parse("maria").expect("a person");
                }
            });
        }),
        (
            "what the request requires now taken out",
            "reassessed",
            Entries,
            &|r| without(r, "AccessRequestReassessed"),
        ),
        (
            "what the request required at first",
            "reassessed",
            Token,
            &|r| {
                change(r, "AccessRequestReassessed", |entry| {
                    if let Event::AccessRequestReassessed(f) = &mut entry.event {
                        for profile in &mut f.decision.required_profiles {
                            profile.digest = Digest::sha256(b"one-security");
                        }
                    }
                });
            },
        ),
        ("one of two votes skipped over", two, Token, &|r| {
            // The chain goes around the first vote, as if there had been one.
            let opening = r.votes[0].index - 1;
            without(r, "VoteCast");
            r.votes.remove(0);
            let is_opening = |entry: &&dipylon::audit::ReceiptEntry| {
                entry.entry.contains("\"AccessRequestOpened\"")
            };
            let opened = r
                .entries
                .iter()
                .find(is_opening)
                .map_or(opening, |entry| entry.index);
            change(r, "VoteCast", |entry| {
                for (stream, version) in &mut entry.write_set {
                    if matches!(stream, Stream::AccessRequest(_)) {
                        *version = opened + 1;
                    }
                }
            });
        }),
        (
            "executed by another agent than the one named",
            recommended,
            Entries,
            &|r| change_executor(r, |executor| executor.agent = id("triage", AgentId::parse)),
        ),
        (
            "executed by the workload that recommends",
            recommended,
            Entries,
            &|r| {
                let mut subject = None;
                change_issue(r, |f| subject = Some(f.subject.clone()));
                change(r, "TaskOpened", |entry| {
                    if let (Event::TaskOpened(f), Some(subject)) = (&mut entry.event, subject) {
                        f.evidence.subject = subject;
                    }
                });
            },
        ),
        (
            "recommended without an approval that was required",
            recommended,
            Token,
            &|r| {
                change(r, "AccessRequestOpened", |entry| {
                    if let Event::AccessRequestOpened(f) = &mut entry.event
                        && let AccessRequester::Agent(by) = &mut f.requester
                    {
                        let mut more = by.decision.required_profiles[0].clone();
                        more.name = id("two-security", ProfileName::parse);
                        by.decision.required_profiles.push(more);
                    }
                });
            },
        ),
        (
            "approved by the executor's owner",
            recommended,
            Token,
            &|r| change_executor(r, |executor| executor.owner = id("dana", PersonId::parse)),
        ),
    ];
    for (what, kind, part, edit) in rebuilt {
        let mut receipt = receipts.of(kind);
        edit(&mut receipt);
        let text = rebuild(&mut receipt, &key);
        all.push(Forgery {
            what,
            part: *part,
            text,
        });
    }
    all.extend(recasts(receipts));
    let other_form = json!({ "form": "dipylon/token-receipt/v2" }).to_string();
    all.push(Forgery {
        what: "another form",
        part: ReceiptPart::Form,
        text: other_form,
    });
    all
}

/// A change of one vote: its entry and its statement.
type Recast<'a> = &'a dyn Fn(usize, &mut VoteCast, &mut VoteStatement);

/// Both votes of a quorum cast again with keys that the broker made up: statements, signatures and tree fit.
fn recast(receipts: &Receipts, keys: [&SigningKey; 2], edit: Recast<'_>) -> String {
    let mut receipt = receipts.of("by two");
    without(&mut receipt, "ApproverEnrolled");
    for (n, (proof, own)) in receipt.votes.iter_mut().zip(keys).enumerate() {
        let stored = receipt.entries.iter_mut();
        let mut stored = stored.filter(|stored| stored.index == proof.index);
        let stored = stored.next().expect("its entry");
        let mut entry = Entry::parse(&stored.entry).expect("an entry");
        let Event::VoteCast(cast) = &mut entry.event else {
            panic!("no vote");
        };
        let mut statement = VoteStatement::parse(&proof.statement).expect("a statement");
        cast.key = own.thumbprint();
        (cast.assertion, cast.sign_count) = (None, None);
        let before = statement.clone();
        edit(n, cast, &mut statement);
        let text = statement.canonical().expect("canonical");
        cast.statement = Digest::sha256(text.as_bytes());
        let signed = match cast.signature.as_str() {
            UNSIGNED => before,
            _ => statement,
        };
        cast.signature = signature(own, signed.digest().expect("digest"));
        (proof.statement, proof.assertion) = (text, None);
        proof.method = VoteMethod::Key;
        proof.jwk = Some(own.public().to_jwk());
        stored.entry = entry.canonical().expect("canonical");
    }
    rebuild(&mut receipt, &receipts.served.signing_key())
}

/// Marks a vote whose signature stays that of the statement before the change.
const UNSIGNED: &str = "unsigned";

/// A receipt of votes with made-up keys: it passes, because whose key was whose is the broker's word.
pub fn recast_without_a_change(receipts: &Receipts) -> String {
    let keys = [SigningKey::generate(), SigningKey::generate()];
    let [first, second] = keys.map(|key| key.expect("key").0);
    recast(receipts, [&first, &second], &|_, _, _| {})
}

fn recasts(receipts: &Receipts) -> Vec<Forgery> {
    use ReceiptPart::{Token, Votes};
    let keys = [SigningKey::generate(), SigningKey::generate()];
    let [first, second] = keys.map(|key| key.expect("key").0);
    let granted = 1;
    let changes: [(&'static str, ReceiptPart, Recast<'_>); 11] = [
        ("facts that were not signed", Votes, &|n, cast, _| {
            if n == 0 {
                cast.facts = Digest::sha256(b"facts");
            }
        }),
        ("other facts that were signed", Votes, &|n, _, statement| {
            if n == 0 {
                statement.facts = Digest::sha256(b"facts");
            }
        }),
        (
            "another owner than the card showed",
            Votes,
            &|n, _, statement| {
                if let (0, StatementRequester::Agent { owner, .. }) = (n, &mut statement.requester)
                {
                    *owner = PersonId::parse("lee").expect("a person");
                }
            },
        ),
        (
            "a statement that was not signed",
            Votes,
            &|n, cast, statement| {
                if n == 0 {
                    statement.nonce.push('x');
                    cast.signature = UNSIGNED.to_owned();
                }
            },
        ),
        (
            "one vote for another profile",
            Token,
            &|n, cast, statement| {
                if n == 0 {
                    cast.profile.name = ProfileName::parse("one-security").expect("a profile");
                    statement.profile = cast.profile.clone();
                }
            },
        ),
        (
            "one vote for a shorter life",
            Token,
            &|n, cast, statement| {
                if n == 0 {
                    cast.max_ttl = Some(granted);
                    statement.max_ttl = Some(granted);
                }
            },
        ),
        (
            "one vote that ends before the token",
            Token,
            &|n, cast, statement| {
                if n == 0 {
                    statement.not_after -= 590;
                    cast.not_after = Timestamp::from_secs(statement.not_after);
                }
            },
        ),
        ("one vote for fewer uses", Token, &|n, cast, statement| {
            if n == 0 {
                cast.uses = Some(0);
                statement.uses = Some(0);
            }
        }),
        ("one person twice", Token, &|_, cast, _| {
            cast.voter = PersonId::parse("maria").expect("a person");
        }),
        ("the owner as a voter", Token, &|n, cast, statement| {
            if let (0, StatementRequester::Agent { owner, .. }) = (n, &statement.requester) {
                cast.voter = owner.clone();
            }
        }),
        ("a denial", Token, &|n, cast, statement| {
            if n == 0 {
                cast.verdict = Verdict::Deny;
                statement.verdict = Verdict::Deny;
            }
        }),
    ];
    let forgery = |(what, part, edit): (&'static str, ReceiptPart, Recast<'_>)| Forgery {
        what,
        part,
        text: recast(receipts, [&first, &second], edit),
    };
    let mut all: Vec<Forgery> = changes.into_iter().map(forgery).collect();
    all.push(Forgery {
        what: "two people with one key",
        part: Votes,
        text: recast(receipts, [&first, &first], &|_, _, _| {}),
    });
    all
}
