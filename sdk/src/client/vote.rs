//! Vote signing. The statement is built here from the card as the approver saw it, compared with the broker's member by
//! member, and only then signed: a broker whose statement differs gets no signature.

use std::fmt;

use crate::card::{Card, Requester};
use crate::jose::SigningKey;
use crate::model::{
    AccessRequestId, Comment, Narrowing, ParseError, ProfileName, Realm, StatementRequester,
    Timestamp, VOTE_STATEMENT_FORM, Verdict, VoteStatement,
};

/// A card as the approver saw it, and the decision.
#[derive(Debug, Clone, Copy)]
pub struct ReviewedCard<'a> {
    /// The card as shown.
    pub card: &'a Card,
    /// The realm the approver votes in, by the approver's own configuration.
    pub realm: &'a Realm,
    /// The profile of the card that the vote is for.
    pub profile: &'a ProfileName,
    /// Approve or deny.
    pub verdict: Verdict,
    /// Limits that the approver sets below the card's.
    pub narrowing: Narrowing,
    /// The message for the agent.
    pub comment: Option<&'a Comment>,
}

/// A signed vote.
#[derive(Clone)]
pub struct SignedVote {
    access_request_id: AccessRequestId,
    statement: String,
    not_after: Timestamp,
    signature: [u8; 64],
}

/// Why a vote was not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignVoteError {
    /// The card is incomplete, or of another realm.
    #[error("vote not signed: the card cannot be read: {0}")]
    Card(ParseError),
    /// The access request does not need this profile.
    #[error("vote not signed: the card does not need this profile")]
    ProfileNotNeeded,
    /// The broker's text is not a statement in canonical JSON, or has members this client does not know.
    #[error("vote not signed: the broker's statement cannot be read")]
    Statement,
    /// The broker's statement differs in this member from the card, or from the facts that the card showed.
    #[error("vote not signed: the broker's statement differs from the card in `{0}`")]
    Differs(&'static str),
    /// `not_after` is over, or more than seven days away.
    #[error("vote not signed: `not_after` must be between now and seven days from now")]
    NotAfter,
    /// The nonce is not 16 bytes as base64url.
    #[error("vote not signed: `nonce` must be 16 bytes as base64url")]
    Nonce,
    /// The signature could not be made.
    #[error("vote not signed: the key failed")]
    Key,
}

/// Signs the broker's statement if it equals the one made from the card. The signature is ES256 over the 32 bytes of its digest.
pub fn sign(
    key: &SigningKey,
    review: &ReviewedCard<'_>,
    statement: &str,
    now: Timestamp,
) -> Result<SignedVote, SignVoteError> {
    let received = VoteStatement::parse(statement).map_err(|_| SignVoteError::Statement)?;
    let expected = expected(review, &received)?;
    compare(&expected, &received)?;
    if !(now.secs()..=now.secs().saturating_add(NOT_AFTER_S_MAX)).contains(&received.not_after) {
        return Err(SignVoteError::NotAfter);
    }
    // Canonical forms are equal exactly if the statements are; expected is the one that is signed.
    let statement = expected.canonical().map_err(|_| SignVoteError::Statement)?;
    let digest = expected.digest().map_err(|_| SignVoteError::Statement)?;
    let signature = key
        .sign(digest.as_bytes())
        .map_err(|_| SignVoteError::Key)?;
    let not_after = Timestamp::from_secs(expected.not_after);
    Ok(SignedVote {
        access_request_id: expected.access_request_id,
        statement,
        not_after,
        signature,
    })
}

/// The statement as the card has it. Of the broker's only the moment and the nonce are taken, neither of which the card shows.
fn expected(
    review: &ReviewedCard<'_>,
    received: &VoteStatement,
) -> Result<VoteStatement, SignVoteError> {
    let card = review.card;
    let required = card
        .needs
        .iter()
        .find(|need| need.profile.name == *review.profile)
        .ok_or(SignVoteError::ProfileNotNeeded)?;
    if card.realm != *review.realm {
        let rule = "is another one than the approver's";
        return Err(SignVoteError::Card(ParseError::new("realm", rule)));
    }
    let Some(action) = &card.action else {
        let rule = "is no longer on record";
        return Err(SignVoteError::Card(ParseError::new("action", rule)));
    };
    // The action in the statement holds commitments in place of sensitive parameters: it must open to the one that was shown.
    let opened = received.action.reopen(card.openings.as_ref());
    if opened.ok().as_ref() != Some(&**action) {
        return Err(SignVoteError::Differs("action"));
    }
    let requester = match &card.requester {
        Requester::Agent(agent) => match &agent.executor {
            None => StatementRequester::Agent {
                id: agent.id.clone(),
                owner: agent.owner.id.clone(),
                task: agent.task,
                task_key: agent.task_key,
            },
            Some(executor) => StatementRequester::Recommendation {
                id: agent.id.clone(),
                owner: agent.owner.id.clone(),
                task: agent.task,
                task_key: agent.task_key,
                executor: executor.id.clone(),
                executor_owner: executor.owner.id.clone(),
            },
        },
        Requester::Person(person) => StatementRequester::Person {
            id: person.id.clone(),
        },
    };
    let narrowed = review.narrowing.max_ttl.into_iter();
    Ok(VoteStatement {
        v: VOTE_STATEMENT_FORM,
        realm: review.realm.clone(),
        access_request_id: card.access_request,
        requester,
        action: received.action.clone(),
        facts: card
            .facts()
            .digest()
            .map_err(|_| SignVoteError::Statement)?,
        max_ttl: card
            .max_ttl
            .map(|most| narrowed.chain([most]).min().unwrap_or(most)),
        uses: review.narrowing.max_uses.into_iter().chain(card.uses).min(),
        comment: review.comment.cloned(),
        policy: card.policy,
        profile: required.profile.clone(),
        verdict: review.verdict,
        not_after: received.not_after,
        nonce: nonce(&received.nonce)?,
    })
}

fn nonce(text: &str) -> Result<String, SignVoteError> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(text)
        .unwrap_or_default();
    if bytes.len() == 16 {
        Ok(text.to_owned())
    } else {
        Err(SignVoteError::Nonce)
    }
}

/// Every member by name: a member added to the form does not compile until it is compared.
fn compare(expected: &VoteStatement, received: &VoteStatement) -> Result<(), SignVoteError> {
    let VoteStatement {
        v,
        realm,
        access_request_id,
        requester,
        action,
        facts,
        max_ttl,
        uses,
        comment,
        policy,
        profile,
        verdict,
        not_after,
        nonce,
    } = expected;
    let members = [
        ("v", *v == received.v),
        ("realm", *realm == received.realm),
        (
            "access_request_id",
            *access_request_id == received.access_request_id,
        ),
        ("requester", *requester == received.requester),
        ("action", *action == received.action),
        ("facts", *facts == received.facts),
        ("max_ttl", *max_ttl == received.max_ttl),
        ("uses", *uses == received.uses),
        ("comment", *comment == received.comment),
        ("policy", *policy == received.policy),
        ("profile", *profile == received.profile),
        ("verdict", *verdict == received.verdict),
        ("not_after", *not_after == received.not_after),
        ("nonce", *nonce == received.nonce),
    ];
    match members.iter().find(|(_, same)| !same) {
        Some((member, _)) => Err(SignVoteError::Differs(member)),
        None => Ok(()),
    }
}

impl SignedVote {
    /// The access request it decides.
    pub fn access_request_id(&self) -> AccessRequestId {
        self.access_request_id
    }

    /// The statement exactly as signed.
    pub fn statement(&self) -> &str {
        &self.statement
    }

    /// When an approval stops counting: set by the broker, signed with the rest.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The ES256 signature, r ‖ s in 64 bytes.
    pub fn signature(&self) -> &[u8; 64] {
        &self.signature
    }
}

/// A statement holds the action in plain.
impl fmt::Debug for SignedVote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedVote({}, redacted)", self.access_request_id)
    }
}

/// Longest validity of an approval, in seconds: seven days.
const NOT_AFTER_S_MAX: i64 = 7 * 86_400;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::card::sample::{NOW, action, card};
    use crate::model::{Digest, TaskId, json as json_text};

    const NONCE_TEXT: &str = "AAAAAAAAAAAAAAAAAAAAAA";

    fn on_record(target: &str, flag: bool) -> Value {
        let (record, _) = action(target, flag).on_record(&BTreeSet::new(), &mut || [0; 16]);
        serde_json::to_value(record).expect("json")
    }

    fn honest() -> Value {
        json!({
            "v": 2,
            "realm": "prod",
            "access_request_id": AccessRequestId::from_random([1; 16]),
            "requester": { "agent": {
                "id": "ci",
                "owner": "p1",
                "task": TaskId::from_random([2; 16]),
                "task_key": Digest::sha256(b"key"),
            } },
            "action": on_record("ann", true),
            "facts": card().facts().digest().expect("digest"),
            "max_ttl": 300,
            "uses": 1,
            "policy": Digest::sha256(b"policy"),
            "profile": { "name": "two-security", "digest": Digest::sha256(b"two-security") },
            "verdict": "approve",
            "not_after": NOW.secs() + 3_600,
            "nonce": NONCE_TEXT,
        })
    }

    fn sign_vote(
        card: &Card,
        statement: &str,
        max_ttl: Option<i64>,
    ) -> Result<SignedVote, SignVoteError> {
        let (realm, profile) = (
            Realm::parse("prod").expect("realm"),
            ProfileName::parse("two-security").expect("profile"),
        );
        let narrowing = Narrowing {
            max_ttl,
            max_uses: None,
        };
        let key = SigningKey::generate().expect("key").0;
        let review = ReviewedCard {
            card,
            realm: &realm,
            profile: &profile,
            verdict: Verdict::Approve,
            narrowing,
            comment: None,
        };
        let vote = sign(&key, &review, statement, NOW)?;
        let digest = VoteStatement::parse(vote.statement())
            .expect("statement")
            .digest()
            .expect("digest");
        assert!(key.public().verify(digest.as_bytes(), vote.signature()));
        assert_eq!(vote.statement(), statement);
        Ok(vote)
    }

    fn text(statement: &Value) -> String {
        json_text::canonical(statement).expect("canonical")
    }

    #[test]
    fn matching_statement_is_signed() {
        let vote = sign_vote(&card(), &text(&honest()), None).expect("signed");
        assert!(!format!("{vote:?}").contains("ann"));
        let mut narrowed = honest();
        narrowed["max_ttl"] = json!(60);
        assert!(sign_vote(&card(), &text(&narrowed), Some(60)).is_ok());
        // Asking for more than was shown changes nothing.
        assert!(sign_vote(&card(), &text(&honest()), Some(9_999)).is_ok());
        let mut unlimited = honest();
        unlimited.as_object_mut().expect("object").remove("uses");
        assert!(
            sign_vote(
                &Card {
                    uses: None,
                    ..card()
                },
                &text(&unlimited),
                None
            )
            .is_ok()
        );
    }

    #[test]
    fn statement_mismatch_names_the_field() {
        let by = |change: fn(&mut Value)| {
            let mut requester = honest()["requester"].clone();
            change(&mut requester["agent"]);
            requester
        };
        let other = |name: &str| json!({ "name": name, "digest": Digest::sha256(b"two-security") });
        let mutations = [
            ("realm", json!("dev")),
            (
                "access_request_id",
                json!(AccessRequestId::from_random([9; 16])),
            ),
            ("requester", by(|agent| agent["id"] = json!("ci2"))),
            ("requester", by(|agent| agent["owner"] = json!("p2"))),
            (
                "requester",
                by(|agent| agent["task"] = json!(TaskId::from_random([9; 16]))),
            ),
            (
                "requester",
                by(|agent| agent["task_key"] = json!(Digest::sha256(b"their key"))),
            ),
            ("requester", json!({ "person": { "id": "p1" } })),
            ("action", on_record("bob", true)),
            ("action", on_record("ann", false)),
            ("facts", json!(Digest::sha256(b"other facts"))),
            ("max_ttl", json!(301)),
            ("max_ttl", json!(299)),
            ("uses", json!(2)),
            ("policy", json!(Digest::sha256(b"other"))),
            ("profile", other("other")),
            (
                "profile",
                json!({ "name": "two-security", "digest": Digest::sha256(b"other") }),
            ),
            ("verdict", json!("deny")),
        ];
        for (member, value) in mutations {
            let mut statement = honest();
            statement[member] = value;
            assert_eq!(
                sign_vote(&card(), &text(&statement), None).err(),
                Some(SignVoteError::Differs(member)),
                "{member}"
            );
        }
        let mut statement = honest();
        statement.as_object_mut().expect("object").remove("uses");
        assert_eq!(
            sign_vote(&card(), &text(&statement), None).err(),
            Some(SignVoteError::Differs("uses"))
        );
        assert_eq!(
            sign_vote(&card(), &text(&honest()), Some(60)).err(),
            Some(SignVoteError::Differs("max_ttl"))
        );
    }

    /// A card whose words are not the ones that the broker's statement rests on gets no signature.
    #[test]
    fn each_fact_of_the_card_is_signed() {
        type Change = fn(&mut Card);
        let changes: [Change; 9] = [
            |card| card.title = "Enable an account".to_owned(),
            |card| card.effect = "Nothing.".to_owned(),
            |card| card.reversible = "no".to_owned(),
            |card| card.undo.clear(),
            |card| card.risk = Some(crate::model::Risk::Low),
            |card| card.parameter_titles.clear(),
            |card| {
                card.target_attributes = Some(vec![("environment".to_owned(), "lab".to_owned())])
            },
            |card| card.rules[0].why = "Because.".to_owned(),
            |card| {
                if let Requester::Agent(agent) = &mut card.requester {
                    agent.registered.as_mut().expect("claims").model = "m-2".to_owned();
                }
            },
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let mut other = card();
            change(&mut other);
            assert_eq!(
                sign_vote(&other, &text(&honest()), None).err(),
                Some(SignVoteError::Differs("facts")),
                "{n}"
            );
            assert!(!card().facts().changed(&other.facts()).is_empty(), "{n}");
        }
    }

    #[test]
    fn not_after_and_nonce_are_validated() {
        for (after, good) in [
            (-1, false),
            (0, true),
            (NOT_AFTER_S_MAX, true),
            (NOT_AFTER_S_MAX + 1, false),
        ] {
            let mut statement = honest();
            statement["not_after"] = json!(NOW.secs() + after);
            let signed = sign_vote(&card(), &text(&statement), None);
            assert_eq!(
                signed.err(),
                (!good).then_some(SignVoteError::NotAfter),
                "{after}"
            );
        }
        for bad in ["", "short", "AAAAAAAAAAAAAAAAAAAAAA=="] {
            let mut statement = honest();
            statement["nonce"] = json!(bad);
            assert_eq!(
                sign_vote(&card(), &text(&statement), None).err(),
                Some(SignVoteError::Nonce),
                "{bad}"
            );
        }
    }

    #[test]
    fn non_canonical_statement_is_rejected() {
        let mut more = honest();
        more["extra"] = json!(1);
        for bad in [
            text(&more),
            format!(" {}", text(&honest())),
            text(&honest()).replace("\"v\":2", "\"v\": 2"),
            text(&honest()).replace("\"v\":2", "\"v\":1"),
            "{}".to_owned(),
        ] {
            assert_eq!(
                sign_vote(&card(), &bad, None).err(),
                Some(SignVoteError::Statement),
                "{bad}"
            );
        }
        let elsewhere = Card {
            realm: Realm::parse("dev").expect("realm"),
            ..card()
        };
        let forgotten = Card {
            action: None,
            ..card()
        };
        for other in [elsewhere, forgotten] {
            let signed = sign_vote(&other, &text(&honest()), None);
            assert!(matches!(signed.err(), Some(SignVoteError::Card(_))));
        }
        let unasked = Card {
            needs: Vec::new(),
            ..card()
        };
        assert_eq!(
            sign_vote(&unasked, &text(&honest()), None).err(),
            Some(SignVoteError::ProfileNotNeeded)
        );
    }
}
