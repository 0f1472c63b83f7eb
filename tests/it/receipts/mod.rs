//! Token receipts, from a served broker through the program, verified by it and by `tests/foreign/verify_receipt.py`: whole ones, and
//! every way to tamper with one.

mod foreign;
mod forged;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use dipylon::audit::*;
use dipylon_sdk::client::{AccessToken, Identity, TaskHandle, TokenOutcome};
use dipylon_sdk::jose::{KeySet, Usage};
use dipylon_sdk::model::*;
use serde_json::{Value, json};

use crate::console::ConsoleUser;
use crate::end_to_end::approve;
use crate::golden::golden;
use crate::receipts::foreign::ForeignVerifier;
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::{CASES, IDP, action, disable, rand_u64, read_case};

/// A served broker with tokens of every kind, and their receipts in files.
struct Receipts {
    served: ServedBroker,
    home: tempfile::TempDir,
    keys: KeySet,
    /// By the name of its kind.
    texts: Vec<(&'static str, String)>,
    /// The receipt of the first of them, from when the journal was shorter.
    early: String,
    /// The text of a sensitive parameter, a purpose and a reason: in no receipt.
    secrets: [&'static str; 3],
}

async fn issued(task: &TaskHandle, action: &Action, key: &str) -> AccessToken {
    match task
        .request_token(&token_request(action.clone(), key))
        .await
    {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    }
}

async fn pending(task: &TaskHandle, action: &Action, key: &str) -> AccessRequestId {
    match task
        .request_token(&token_request(action.clone(), key))
        .await
    {
        Ok(TokenOutcome::Pending(pending)) => pending.access_request_id(),
        other => panic!("not pending: {other:?}"),
    }
}

impl Receipts {
    async fn start() -> Self {
        let served = ServedBroker::start_with_policy(|policy| {
            policy
                .get_mut("rules/20-guardrails.cedar")
                .expect("rules")
                .push_str(
                    "\n@id(\"notes-need-a-yes\")\n@why(\"For this story.\")\n@step_up(\"one-security\")\nforbid (principal, action == \
                     Action::\"case.note\", resource)\nunless { context.approvals.contains(StepUp::\"one-security\") };\n",
                );
        })
        .await;
        let home = tempfile::tempdir().expect("dir");
        for name in ["olga", "audit"] {
            use std::os::unix::fs::PermissionsExt as _;
            let path = home.path().join(format!("{name}.pem"));
            std::fs::write(&path, served.env.pem_of(name)).expect("key");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
        }
        let jwks = served.broker.jwks().to_string();
        std::fs::write(home.path().join("jwks.json"), &jwks).expect("keys");
        let keys = KeySet::parse(jwks.as_bytes(), Usage::Signature).expect("keys");
        let mut receipts = Self {
            served,
            home,
            keys,
            texts: Vec::new(),
            early: String::new(),
            secrets: [
                "hunter2 was her password",
                "contain INC-8841",
                "phish confirmed",
            ],
        };
        receipts.make().await;
        receipts
    }

    /// One token of each kind.
    async fn make(&mut self) {
        let s = &self.served;
        let lee = ConsoleUser::sign_in(s, "lee").await;
        let maria = s.approver("maria");
        let task = s.task("triage").await;
        let mut kinds = Vec::new();

        let plain = issued(&task, &read_case(), "plain").await;
        kinds.push(("no step-up", plain.jti()));
        let early = self.fetch("no step-up", plain.jti());

        let id = pending(&task, &disable("ann"), "key").await;
        approve(&maria, id, "one-security").await;
        let by_key = issued(&task, &disable("ann"), "key").await;
        let again = issued(&task, &disable("ann"), "key").await;
        assert!(again.reissued() && again.jti() == by_key.jti());
        let idp = Identity::Key(std::sync::Arc::new(s.env.key_of("idp")));
        let used = s
            .endpoint()
            .consume_token(&idp, by_key.jwt().expose_secret(), "u-1")
            .await;
        used.expect("consumed");
        kinds.push(("by key, reissued, used", by_key.jti()));

        let yes = json!({ "profile": "one-security", "verdict": "approve" });
        let id = pending(&task, &disable("cara"), "passkey").await;
        lee.vote(id, yes.clone()).await.ok();
        kinds.push((
            "by passkey",
            issued(&task, &disable("cara"), "passkey").await.jti(),
        ));

        let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
        let id = pending(&task, &isolate, "two").await;
        approve(&maria, id, "two-security").await;
        lee.vote(
            id,
            json!({ "profile": "two-security", "verdict": "approve" }),
        )
        .await
        .ok();
        kinds.push(("by two", issued(&task, &isolate, "two").await.jti()));

        let text = Param::Str(self.secrets[0].to_owned());
        let note = action("case.note", "Case", "INC-8841", CASES, &[("text", text)]);
        let id = pending(&task, &note, "note").await;
        lee.vote(id, yes).await.ok();
        kinds.push(("sensitive", issued(&task, &note, "note").await.jti()));

        let ending = s.task("triage").await;
        let ended = issued(&ending, &read_case(), "ended").await;
        ending
            .complete(TaskOutcome::Succeeded)
            .await
            .expect("completes");
        kinds.push(("ended", ended.jti()));
        let revoked = issued(&task, &read_case(), "revoked").await;
        s.operator("olga")
            .revoke_token(revoked.jti())
            .await
            .expect("revoked");
        kinds.push(("revoked", revoked.jti()));

        // Recommended by one agent, executed by another: by key, since its owner has a passkey alone.
        let recommends = s.task("assistant").await;
        let id = pending(&recommends, &disable("ann"), "advice").await;
        approve(&s.approver("dana"), id, "one-security").await;
        let mut order = token_request(disable("ann"), "executed");
        order.recommendation = Some(id);
        let executes = s.task("responder").await;
        match executes.request_token(&order).await.expect("asked") {
            TokenOutcome::Token(token) => kinds.push(("recommended", token.jti())),
            other => panic!("people approved it: {other:?}"),
        }

        // A policy bundle changes what a waiting request requires: what people agree to then is what is on record last.
        let id = pending(&task, &disable("ann"), "reassessed").await;
        let two = |rules: &str| {
            rules.replacen(
                "@step_up(\"one-security\")",
                "@step_up(\"two-security\")",
                1,
            )
        };
        let changed = s.env.policy_with("rules/20-guardrails.cedar", two);
        let applied = s.operator("olga").apply_policy_bundle(&changed).await;
        applied.expect("applied");
        approve(&maria, id, "two-security").await;
        let yes = json!({ "profile": "two-security", "verdict": "approve" });
        lee.vote(id, yes).await.ok();
        let reassessed = issued(&task, &disable("ann"), "reassessed").await;
        kinds.push(("reassessed", reassessed.jti()));

        self.early = early;
        for (kind, jti) in kinds {
            let text = self.fetch(kind, jti);
            self.texts.push((kind, text));
        }
    }

    /// A receipt as the program writes it.
    fn fetch(&self, kind: &str, jti: TokenId) -> String {
        let (jti, file) = (jti.to_string(), self.path("receipt.json"));
        let file = file.to_str().expect("a path");
        let (code, out, err) = self.run(&["receipt", &jti, "--out", file, "--key", "olga.pem"]);
        assert_eq!((code, err.as_str()), (0, ""), "{kind}: {out}");
        assert!(
            out.contains(&jti) && out.contains("not proved"),
            "{kind}: {out}"
        );
        let text = std::fs::read_to_string(file).expect("the receipt");
        text.trim_end().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The program in the home directory: exit code, stdout, stderr.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_dipylon"))
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .env("DIPYLON_URL", &self.served.url)
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .output()
            .expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code().expect("ended"),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    fn of(&self, kind: &str) -> TokenReceipt {
        let (_, text) = self
            .texts
            .iter()
            .find(|(name, _)| *name == kind)
            .expect("made");
        TokenReceipt::parse(text).expect("a receipt")
    }

    /// The library's verdict: what the program's is, without a process for each of thousands.
    fn verify(&self, text: &str, realm: Option<&str>) -> Result<VerifiedReceipt, ReceiptPart> {
        let realm = realm.map(|realm| Realm::parse(realm).expect("a realm"));
        let expected = ExpectedReceipt {
            keys: &self.keys,
            realm: realm.as_ref(),
            checkpoint: None,
        };
        let receipt = TokenReceipt::parse(text).map_err(|e| e.part)?;
        verify_receipt(&receipt, &expected).map_err(|e| e.part)
    }
}

fn kinds_of(verified: &VerifiedReceipt) -> Vec<&'static str> {
    verified.entries().map(|(_, kind)| kind).collect()
}

/// A text with one change for each string, number and truth value in it, at every depth.
fn changed_values(value: &Value) -> Vec<Value> {
    match value {
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, member)| {
                changed_values(member).into_iter().map(move |changed| {
                    let mut members = members.clone();
                    members.insert(name.clone(), changed);
                    Value::Object(members)
                })
            })
            .collect(),
        Value::Array(items) => (0..items.len())
            .flat_map(|at| {
                let rest = items[..at].iter().chain(&items[at + 1..]).cloned();
                let without = Value::Array(rest.collect());
                let others = changed_values(&items[at]).into_iter().map(move |changed| {
                    let mut items = items.clone();
                    items[at] = changed;
                    Value::Array(items)
                });
                others.chain([without])
            })
            .collect(),
        Value::String(text) => {
            // The lowest bit of a character in the middle.
            let mut bytes = text.clone().into_bytes();
            let middle = bytes.len() / 2;
            match bytes.get_mut(middle) {
                Some(byte) if byte.is_ascii_alphanumeric() => *byte ^= 1,
                Some(_) | None => bytes.push(b'x'),
            }
            vec![Value::String(String::from_utf8(bytes).expect("text"))]
        }
        Value::Number(number) => vec![json!(number.as_i64().expect("an integer") ^ 1)],
        Value::Bool(flag) => vec![json!(!flag)],
        Value::Null => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_verify_and_tampered_ones_are_refused() {
    let receipts = Receipts::start().await;
    let mut foreign = ForeignVerifier::start(&receipts.path("jwks.json"));

    // Whole ones: by the program, offline; and by the other implementation.
    receipts_verify(&receipts, foreign.as_mut());
    random_flips_are_refused(&receipts, foreign.as_mut());

    // Another realm, and another checkpoint.
    let (_, text) = &receipts.texts[1];
    let mut agree = |text: &str, realm: Option<&str>, expected: ReceiptPart, what: &str| {
        let found = receipts.verify(text, realm).err();
        assert_eq!(found, Some(expected), "{what}");
        if let Some(foreign) = &mut foreign {
            assert_eq!(foreign.refusal(text, realm), expected.as_str(), "{what}");
        }
    };
    agree(text, Some("prod"), ReceiptPart::Realm, "another realm");

    // Cut anywhere; a byte more.
    for at in (0..text.len()).step_by(text.len() / 40) {
        let at = text.floor_char_boundary(at);
        agree(&text[..at], None, ReceiptPart::Form, "cut");
    }
    agree(&format!("{text} "), None, ReceiptPart::Form, "a blank more");
    agree(
        &text.replacen("{", "{\"more\":1,", 1),
        None,
        ReceiptPart::Form,
        "a member more",
    );

    // Each value changed, each item taken out: of a receipt with votes by key and passkey.
    let two = receipts.of("by two").canonical().expect("text");
    let value: Value = serde_json::from_str(&two).expect("JSON");
    let changed = changed_values(&value);
    assert!(changed.len() > 80, "{}", changed.len());
    for other in changed {
        let text = json::canonical(&other).expect("canonical");
        let part = receipts.verify(&text, None).expect_err("refused");
        assert!(part <= ReceiptPart::Signature, "{part}: {text}");
        agree(&text, None, part, "a changed value");
    }

    // What only the broker's key could sign.
    for forgery in forged::all(&receipts) {
        agree(&forgery.text, None, forgery.part, forgery.what);
    }
    let made_up = forged::recast_without_a_change(&receipts);
    for forgery in forged::honest(&receipts).into_iter().chain([made_up]) {
        assert!(receipts.verify(&forgery, None).is_ok(), "signed again");
    }
}

fn receipts_verify(receipts: &Receipts, mut foreign: Option<&mut ForeignVerifier>) {
    for (kind, text) in &receipts.texts {
        let verified = receipts.verify(text, Some("test"));
        let verified = verified.unwrap_or_else(|part| panic!("{kind}: {part}"));
        for secret in receipts.secrets {
            assert!(!text.contains(secret), "{kind} shows {secret}");
        }
        std::fs::write(receipts.path("r.json"), text).expect("written");
        let noted = verified.checkpoint().checkpoint().to_string();
        let args = [
            "receipt",
            "verify",
            "r.json",
            "--keys",
            "jwks.json",
            "--realm",
            "test",
        ];
        let (code, out, err) = receipts.run(&[&args[..], &["--checkpoint", &noted]].concat());
        assert_eq!(code, 0, "{kind}: {err}");
        assert!(out.starts_with("verified: tok_"), "{kind}: {out}");
        for vote in verified.votes() {
            let words = format!("{} {}", vote.method.signed_by(), vote.key);
            assert!(out.contains(&words), "{kind}: {words}: {out}");
            let shown = &vote.facts.action;
            let line = format!("{} saw risk {}, effect: ", vote.voter, shown.risk);
            assert!(
                out.contains(&line) && !shown.effect.is_empty(),
                "{kind}: {out}"
            );
        }
        if let Some(foreign) = &mut foreign {
            let found = foreign.answer(text, Some("test"));
            let entries: Vec<Value> = verified
                .entries()
                .map(|(index, kind)| json!([index, kind]))
                .collect();
            assert_eq!(
                found["verified"]["entries"],
                json!(entries),
                "{kind}: {found}"
            );
            let votes: Vec<Value> = verified
                .votes()
                .iter()
                .map(|vote| json!([vote.voter, vote.verdict, vote.method]))
                .collect();
            assert_eq!(found["verified"]["votes"], json!(votes), "{kind}");
            let shown: Vec<Value> = verified
                .votes()
                .iter()
                .map(|vote| json!([vote.facts.action.risk, vote.facts.action.effect]))
                .collect();
            assert_eq!(found["verified"]["shown"], json!(shown), "{kind}");
        }
        let has = |name: &str| kinds_of(&verified).contains(&name);
        match *kind {
            "no step-up" => assert_eq!(
                kinds_of(&verified),
                [
                    "EpochStarted",
                    "KeyPublished",
                    "PolicyApplied",
                    "TaskOpened",
                    "TokenIssued"
                ]
            ),
            "by key, reissued, used" => {
                let token = verified.token();
                assert_eq!(
                    (token.reissues, token.uses, verified.votes().len()),
                    (1, 1, 1)
                );
                assert!(verified.votes()[0].method == VoteMethod::Key && has("TokenConsumed"));
            }
            "by passkey" => assert!(
                verified.votes()[0].method == VoteMethod::Passkey && has("ApproverEnrolled")
            ),
            "recommended" => {
                let token = verified.token();
                let by = token.recommended_in.as_ref().expect("a recommendation");
                assert_eq!(
                    (by.agent.as_str(), token.issued.agent.as_str()),
                    ("assistant", "responder")
                );
                assert!(out.contains("assistant of olga"), "{out}");
            }
            "by two" => assert_eq!(verified.votes().len(), 2),
            "sensitive" => assert!(
                verified.votes().len() == 1 && out.contains("sensitive"),
                "{out}"
            ),
            "reassessed" => assert!(has("AccessRequestReassessed") && verified.votes().len() == 2),
            "ended" => assert_eq!(verified.token().end.expect("ended").2, "TaskEnded"),
            "revoked" => assert_eq!(verified.token().end.expect("ended").2, "GrantsEnded"),
            other => panic!("{other} is not checked"),
        }
    }
    // The keys over HTTP; an auditor; JSON; refusals in words.
    let url = format!("{}/.well-known/jwks.json", receipts.served.url);
    let (code, out, _) = receipts.run(&["receipt", "verify", "r.json", "--keys", &url, "--json"]);
    let found: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &found["valid"]), (0, &json!(true)));
    let (_, text) = &receipts.texts[0];
    let jti = receipts.of("no step-up").jti.to_string();
    let (code, out, _) = receipts.run(&["receipt", &jti, "--key", "audit.pem", "--json"]);
    let fetched: Value = serde_json::from_str(&out).expect("JSON");
    let before: Value = serde_json::from_str(text).expect("JSON");
    assert_eq!((code, &fetched["jti"]), (0, &before["jti"]));
    for (args, expected) in [
        (
            &["--realm", "prod"][..],
            "realm: expected a receipt of realm prod, got test",
        ),
        (
            &[
                "--checkpoint",
                "1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            ],
            "checkpoint: expected 1:",
        ),
    ] {
        let args = [
            &["receipt", "verify", "r.json", "--keys", "jwks.json"][..],
            args,
        ]
        .concat();
        let (code, _, err) = receipts.run(&args);
        assert!(code == 1 && err.contains(expected), "{code}: {err}");
    }
    let args = [
        "receipt",
        "verify",
        "r.json",
        "--keys",
        "jwks.json",
        "--url",
        &receipts.served.url,
    ];
    let (code, _, err) = receipts.run(&args);
    assert!(
        code == 2 && err.contains("--url has no effect"),
        "{code}: {err}"
    );
    std::fs::write(receipts.path("none.json"), "{\"keys\":[]}").expect("written");
    let (code, _, err) = receipts.run(&["receipt", "verify", "r.json", "--keys", "none.json"]);
    assert!(
        code == 1 && err.contains("the given keys do not have its key"),
        "{err}"
    );
    let unknown = TokenId::from_random([7; 16]).to_string();
    let (code, _, err) = receipts.run(&["receipt", &unknown, "--key", "olga.pem"]);
    assert!(code == 1 && err.contains("no token"), "{code}: {err}");
}

/// Bits flipped at random: the two may refuse another part, since only one of them checks the form of each name.
fn random_flips_are_refused(receipts: &Receipts, foreign: Option<&mut ForeignVerifier>) {
    let text = receipts.of("by two").canonical().expect("text");
    let mut foreign = foreign;
    for n in 0..2_000 {
        let mut bytes = text.clone().into_bytes();
        let at = usize::try_from(rand_u64()).expect("64 bits") % bytes.len();
        bytes[at] ^= 1 << (rand_u64() % 8);
        let Ok(flipped) = String::from_utf8(bytes) else {
            continue;
        };
        let part = receipts.verify(&flipped, None).err();
        let part = part.unwrap_or_else(|| panic!("verified: {flipped}"));
        assert!(part <= ReceiptPart::Signature, "{part}: {flipped}");
        if n % 8 == 0
            && let Some(foreign) = &mut foreign
        {
            let part = foreign.refusal(&flipped, None);
            assert!(part == "form" || part == "signature", "{part}: {flipped}");
        }
    }
}

/// Each use and reissue is an entry. A receipt is longer than a message then, and leaves them out when they are too many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_reissues_make_a_long_receipt_and_then_one_without_them() {
    let served = ServedBroker::start().await;
    let task = served.task("triage").await;
    let jti = issued(&task, &read_case(), "again").await.jti();
    let jwks = served.broker.jwks().to_string();
    let keys = KeySet::parse(jwks.as_bytes(), Usage::Signature).expect("keys");
    let expected = ExpectedReceipt {
        keys: &keys,
        realm: None,
        checkpoint: None,
    };
    for (reissues, shown) in [(256, 256), (1, 0)] {
        for _ in 0..reissues {
            assert!(issued(&task, &read_case(), "again").await.reissued());
        }
        let text = served.operator("olga").token_receipt(jti).await;
        let text = text.expect("a receipt");
        let receipt = TokenReceipt::parse(&text).expect("a receipt");
        let verified = verify_receipt(&receipt, &expected).expect("verifies");
        assert_eq!(verified.token().reissues, shown);
        assert_eq!(verified.uses_omitted(), shown == 0);
        let is_long = text.len() > 4 * dipylon::serve::MESSAGE_BYTES_MAX;
        assert_eq!(is_long, shown > 0, "{}", text.len());
    }
    // The end is in it all the same: here an entry that ends every token of an agent.
    let olga = served.operator("olga");
    let scope = FreezeScope::parse("agent/triage").expect("a scope");
    olga.freeze(&scope, "why").await.expect("frozen");
    let text = olga.token_receipt(jti).await.expect("a receipt");
    let receipt = TokenReceipt::parse(&text).expect("a receipt");
    let verified = verify_receipt(&receipt, &expected).expect("verifies");
    assert_eq!(
        verified.token().end.map(|(_, _, kind)| kind),
        Some("Frozen")
    );
    // Content that is gone makes no receipt, and says so.
    let db = rusqlite::Connection::open(served.dir.join("journal.db")).expect("opens");
    let gone = issued_by_vote(&served).await;
    let deleted = db.execute(
        "DELETE FROM blobs WHERE content LIKE '%access_request_id%'",
        [],
    );
    assert_eq!(deleted.expect("deleted"), 1);
    let refused = olga.token_receipt(gone).await.expect_err("refused");
    assert_eq!(
        refused.reason(),
        Some(Reason::ReceiptUnavailable),
        "{refused}"
    );
}

/// A token that one person approved by key, for an agent that is not frozen.
async fn issued_by_vote(served: &ServedBroker) -> TokenId {
    let scope = FreezeScope::parse("agent/triage").expect("a scope");
    let lifted = served.operator("olga").unfreeze(&scope).await;
    lifted.expect("lifted");
    let task = served.task("triage").await;
    let id = pending(&task, &disable("ann"), "key").await;
    approve(&served.approver("maria"), id, "one-security").await;
    issued(&task, &disable("ann"), "key").await.jti()
}

/// The form, byte by byte, and what is signed of it.
#[test]
fn receipt_form() {
    let digest = |n: u8| Digest::from_bytes([n; 32]);
    let receipt = TokenReceipt {
        form: RECEIPT_FORM.to_owned(),
        realm: Realm::parse("test").expect("a realm"),
        issuer: "https://dipylon.soc.example".to_owned(),
        jti: TokenId::from_random([1; 16]),
        checkpoint: SignedCheckpoint {
            epoch: 0,
            size: 9,
            root: digest(2),
            at: Timestamp::from_millis(1_800_000_000_123),
            signature: "AAAA".to_owned(),
        },
        entries: vec![ReceiptEntry {
            index: 7,
            entry: "{\"v\":2}".to_owned(),
            path: vec![digest(3), digest(4)],
        }],
        votes: vec![
            VoteEvidence {
                index: 5,
                method: VoteMethod::Key,
                statement: "{\"v\":2}".to_owned(),
                facts: "{}".to_owned(),
                assertion: None,
                jwk: Some(json!({ "kty": "EC" })),
            },
            VoteEvidence {
                index: 6,
                method: VoteMethod::Passkey,
                statement: "{\"v\":2,\"verdict\":\"deny\"}".to_owned(),
                facts: "{\"action\":{}}".to_owned(),
                assertion: Some("{}".to_owned()),
                jwk: None,
            },
        ],
        profiles: vec![ProfileDefinition {
            name: ProfileName::parse("two-security").expect("a profile"),
            group: GroupId::parse("security").expect("a group"),
            quorum: 2,
            wait: 900,
            good_for: 600,
            method: "key".to_owned(),
        }],
        uses_omitted: false,
        kid: KeyId::parse("k-1").expect("a kid"),
        signature: "BBBB".to_owned(),
    };
    let text = receipt.canonical().expect("canonical");
    assert_eq!(TokenReceipt::parse(&text).expect("reads"), receipt);
    let signed = receipt.digest().expect("digest");
    let head = receipt
        .checkpoint
        .digest(&receipt.realm, &receipt.issuer)
        .expect("digest");
    golden(
        "token_receipt.txt",
        &format!("{text}\nsigned {signed}\ncheckpoint signed {head}\n"),
    );
}
