//! Golden files: the stored and wire formats, byte by byte. `DIPYLON_BLESS=1` rewrites them: say why in the commit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dipylon::mint::claims_of;
use dipylon::state::{FeedEvent, Selector};
use dipylon_sdk::model::*;
use serde_json::json;

pub(super) fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/golden")
        .join(name);
    if std::env::var_os("DIPYLON_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        std::fs::write(&path, found).expect("written");
    }
    let frozen = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, frozen,
        "{name} differs from its golden file; if the change is intended, run with DIPYLON_BLESS=1"
    );
}

fn id<T>(n: u8, make: fn([u8; 16]) -> T) -> T {
    make([n; 16])
}

fn digest(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

pub(super) fn word<T>(text: &str, parse: fn(&str) -> Result<T, ParseError>) -> T {
    parse(text).expect(text)
}

fn action() -> Action {
    Action::new(
        word("host.isolate", ActionName::parse),
        word("https://edr.example", Audience::parse),
        Target::parse("Host", "web-1 \u{e9}\u{1F600}").expect("target"),
        BTreeMap::from([
            (
                "text".to_owned(),
                Param::Str("a \"quoted\" \\ line\n".to_owned()),
            ),
            ("force".to_owned(), Param::Bool(true)),
            ("minutes".to_owned(), Param::Int(-9_007_199_254_740_991)),
            (
                "ports".to_owned(),
                Param::Set(vec![Param::Int(22), Param::Int(443)]),
            ),
            (
                "who".to_owned(),
                Param::Record(BTreeMap::from([
                    ("b".to_owned(), Param::Int(1)),
                    ("a".to_owned(), Param::Str(String::new())),
                ])),
            ),
        ]),
    )
    .expect("action")
}

fn on_record() -> (ActionOnRecord, ActionSecret) {
    let mut n = 0;
    let (record, secret) = action().on_record(&BTreeSet::from(["text".to_owned()]), &mut || {
        n += 1;
        [n; 16]
    });
    (record, secret.expect("a sensitive parameter"))
}

fn evidence() -> EvidenceFacts {
    EvidenceFacts {
        kind: EvidenceKind::JwtSvid,
        subject: word("spiffe://soc.example/agent/triage", SpiffeId::parse),
        kid: word("k-1", KeyId::parse),
        sha256: digest(1),
        verified_at: Timestamp::from_millis(1_800_000_000_123),
        expires_at: Timestamp::from_secs(1_800_000_300),
    }
}

fn profile() -> ProfileRef {
    ProfileRef {
        name: word("two-security", ProfileName::parse),
        digest: digest(2),
    }
}

fn decision() -> DecisionRecord {
    DecisionRecord {
        id: id(3, DecisionId::from_random),
        policy: digest(3),
        rules: [RuleRef {
            id: "destructive-needs-approval".into(),
            file: "rules/20-guardrails.cedar".into(),
        }]
        .into(),
        required_profiles: vec![profile()],
        ttl: TtlBreakdown {
            requested: 900,
            limits: vec![TtlLimit {
                source: "cap".into(),
                seconds: 600,
            }],
            granted: 600,
        },
        input: PolicyInput {
            ttl_ms: 600_000,
            approvals: vec![profile().name],
            evidence_kind: EvidenceKind::JwtSvid,
            evidence_age_ms: 17,
            binding: "jkt".into(),
            task_age_ms: 99,
            now: Timestamp::from_millis(1_800_000_000_140),
        },
    }
}

fn issued() -> TokenIssued {
    TokenIssued {
        jti: id(4, TokenId::from_random),
        task: id(5, TaskId::from_random),
        agent: word("triage", AgentId::parse),
        subject: evidence().subject,
        idempotency_key: word("r-1", IdempotencyKey::parse),
        requested_ttl: 900,
        reason: Some(digest(6)),
        action: on_record().0.into(),
        secret: Some(digest(7)),
        iat: 1_800_000_000,
        exp: 1_800_000_600,
        kid: word("kid-1", KeyId::parse),
        cnf: Binding::Jkt(Thumbprint(digest(8))),
        uses: Some(1),
        pos: 41,
        approval: Some(
            ApprovalClaim {
                access_request: id(9, AccessRequestId::from_random),
                profiles: vec![profile().name],
                at: 1_800_000_000,
            }
            .into(),
        ),
        consumed: Some(id(9, AccessRequestId::from_random)),
        decision: decision(),
        evidence: evidence().into(),
    }
}

/// One event of every kind; a new kind does not compile until it is listed here.
fn facts() -> Vec<Event> {
    let (task, agent, person) = (
        id(5, TaskId::from_random),
        word("triage", AgentId::parse),
        word("olga", PersonId::parse),
    );
    let access_request = id(9, AccessRequestId::from_random);
    let opened = TaskOpened {
        task,
        agent: agent.clone(),
        owner: word("dana", PersonId::parse),
        binding: issued().cnf,
        idempotency_key: word("open-1", IdempotencyKey::parse),
        requested_seconds: 3_600,
        opened_at: Timestamp::from_millis(1_800_000_000_123),
        deadline: Timestamp::from_millis(1_800_003_600_123),
        heartbeat_seconds: None,
        purpose: digest(12),
        evidence: evidence(),
        policy: digest(3),
    };
    let all = vec![
        Event::EpochStarted(EpochStarted {
            realm: word("soc", Realm::parse),
        }),
        Event::TrustBundleChanged(TrustBundleChanged {
            domain: word("soc.example", TrustDomain::parse),
            bundle: digest(10),
            kids: vec![word("k-1", KeyId::parse)],
            removed: vec![word("k-0", KeyId::parse)],
        }),
        Event::KeyPublished(KeyPublished {
            kid: word("kid-1", KeyId::parse),
            jwk: json!({"kty": "EC"}),
        }),
        Event::PolicyApplied(PolicyApplied {
            version: digest(3),
            by: Some(person.clone()),
        }),
        Event::AgentSuspended(AgentSuspended {
            agent: agent.clone(),
            by: person.clone(),
            reason: Some(digest(11)),
            denials: None,
        }),
        Event::AgentResumed(AgentResumed {
            agent: agent.clone(),
            by: person.clone(),
        }),
        Event::TaskOpened(opened.clone()),
        Event::TaskEnded(TaskEnded {
            tasks: vec![task],
            cause: EndCause::Completed,
            outcome: Some(TaskOutcome::Succeeded),
            by: None,
        }),
        Event::RequestDenied(RequestDenied {
            id: id(3, DecisionId::from_random),
            task,
            idempotency_key: word("r-1", IdempotencyKey::parse),
            reason: DeniedReason::ForbiddenByRule.to_string(),
            action: on_record().0,
            secret: Some(digest(7)),
            decision: Some(decision()),
            evidence: evidence(),
        }),
        Event::AccessRequestOpened(AccessRequestOpened {
            access_request,
            task,
            agent: agent.clone(),
            owner: word("dana", PersonId::parse),
            idempotency_key: word("r-1", IdempotencyKey::parse),
            action: on_record().0,
            secret: Some(digest(7)),
            reason: Some(digest(6)),
            max_ttl: 600,
            uses: Some(1),
            expires_at: Timestamp::from_millis(1_800_000_900_140),
            decision: decision(),
            evidence: evidence(),
        }),
        Event::VoteCast(VoteCast {
            access_request,
            voter: word("maria", PersonId::parse),
            key: Thumbprint(digest(13)),
            verdict: Verdict::Approve,
            profile: profile(),
            max_ttl: 300,
            not_after: Timestamp::from_secs(1_800_000_600),
            statement: digest(14),
            signature: "c2ln".into(),
            uses: Some(1),
            assertion: None,
            sign_count: None,
        }),
        Event::VoteCast(VoteCast {
            access_request,
            voter: word("lee", PersonId::parse),
            key: Thumbprint(digest(16)),
            verdict: Verdict::Deny,
            profile: profile(),
            max_ttl: 300,
            not_after: Timestamp::from_secs(1_800_000_600),
            statement: digest(14),
            signature: "c2ln".into(),
            uses: None,
            assertion: Some(digest(17)),
            sign_count: Some(4),
        }),
        Event::AgentSuspended(AgentSuspended {
            agent: agent.clone(),
            by: word("lee", PersonId::parse),
            reason: None,
            denials: Some(3),
        }),
        Event::ApproverInvited(ApproverInvited {
            invitation: id(18, InvitationId::from_random),
            person: word("lee", PersonId::parse),
            code: digest(19),
            expires_at: Timestamp::from_millis(1_800_000_900_140),
            by: person.clone(),
        }),
        Event::ApproverEnrolled(ApproverEnrolled {
            person: word("lee", PersonId::parse),
            invitation: id(18, InvitationId::from_random),
            passkey: PasskeyOnRecord {
                credential: "Y3JlZA".into(),
                key: Thumbprint(digest(16)),
                jwk: json!({"kty": "EC"}),
                sign_count: 0,
                backup_eligible: true,
                backed_up: false,
                aaguid: "AAAAAAAAAAAAAAAAAAAAAA".into(),
                label: "Phone".into(),
            },
        }),
        Event::ApproverKeysRevoked(ApproverKeysRevoked {
            person: word("lee", PersonId::parse),
            keys: vec![Thumbprint(digest(16))],
            cause: RevokeCause::Operator,
            by: Some(person.clone()),
        }),
        Event::VoteRefused(VoteRefused {
            access_request,
            voter: word("dana", PersonId::parse),
            reason: "owns the agent".into(),
        }),
        Event::AccessRequestClosed(AccessRequestClosed {
            access_request,
            cause: CloseCause::Expired,
            voting_started: false,
        }),
        Event::TokenIssued(issued()),
        Event::TokenReissued(TokenReissued {
            jti: issued().jti,
            kid: issued().kid,
        }),
        Event::TokenConsumed(TokenConsumed {
            jti: issued().jti,
            validator: word("idp", ServiceId::parse),
            use_id: word("use-1", UseId::parse),
        }),
        Event::GrantsEnded(GrantsEnded {
            jtis: vec![issued().jti],
            cause: EndCause::Policy,
            by: None,
        }),
        Event::RefusalsCounted(RefusalsCounted {
            since: Timestamp::from_secs(1_800_000_000),
            count: 7,
            rows: vec![RefusalCount {
                method: "dipylon.v1.TaskService/OpenTask".to_owned(),
                reason: Reason::NotAuthenticated,
                count: 7,
            }],
        }),
        Event::TaskOpened(TaskOpened {
            heartbeat_seconds: Some(30),
            ..opened
        }),
        Event::LeasesExtended(LeasesExtended {
            leases: vec![(task, Timestamp::from_millis(1_800_000_030_123))],
            served_until: None,
        }),
        Event::LeasesExtended(LeasesExtended {
            leases: vec![(task, Timestamp::from_millis(1_800_000_090_123))],
            served_until: Some(Timestamp::from_millis(1_800_000_025_000)),
        }),
        Event::Frozen(Frozen {
            scope: FreezeScope::Owner(person.clone()),
            agents: vec![agent.clone()],
            by: person.clone(),
            reason: Some(digest(11)),
        }),
        Event::Frozen(Frozen {
            scope: FreezeScope::Action(word("account.disable", ActionName::parse)),
            agents: vec![],
            by: person.clone(),
            reason: None,
        }),
        Event::Unfrozen(Unfrozen {
            scope: FreezeScope::All,
            by: person.clone(),
        }),
        Event::GrantsEnded(GrantsEnded {
            jtis: vec![id(4, TokenId::from_random)],
            cause: EndCause::Operator,
            by: Some(person.clone()),
        }),
    ];
    for fact in &all {
        match fact {
            Event::EpochStarted(_)
            | Event::TrustBundleChanged(_)
            | Event::KeyPublished(_)
            | Event::PolicyApplied(_)
            | Event::AgentSuspended(_)
            | Event::AgentResumed(_)
            | Event::Frozen(_)
            | Event::Unfrozen(_)
            | Event::TaskOpened(_)
            | Event::LeasesExtended(_)
            | Event::TaskEnded(_)
            | Event::RequestDenied(_)
            | Event::AccessRequestOpened(_)
            | Event::VoteCast(_)
            | Event::VoteRefused(_)
            | Event::AccessRequestClosed(_)
            | Event::ApproverInvited(_)
            | Event::ApproverEnrolled(_)
            | Event::ApproverKeysRevoked(_)
            | Event::TokenIssued(_)
            | Event::TokenReissued(_)
            | Event::TokenConsumed(_)
            | Event::GrantsEnded(_)
            | Event::RefusalsCounted(_) => {}
        }
    }
    all
}

fn streams() -> Vec<Stream> {
    let task = id(5, TaskId::from_random);
    let agent = word("triage", AgentId::parse);
    vec![
        Stream::Task(task),
        Stream::Lease(task),
        Stream::open_task(
            agent.clone(),
            Thumbprint(digest(8)),
            word("open-1", IdempotencyKey::parse),
        ),
        Stream::TokenRequest(task, word("r-1", IdempotencyKey::parse)),
        Stream::AccessRequest(id(9, AccessRequestId::from_random)),
        Stream::refused_vote(
            id(9, AccessRequestId::from_random),
            word("dana", PersonId::parse),
            "not an approver",
        ),
        Stream::AgentRequests(agent.clone()),
        Stream::OwnerRequests(word("dana", PersonId::parse)),
        Stream::Token(id(4, TokenId::from_random)),
        Stream::Agent(agent.clone()),
        Stream::Person(word("dana", PersonId::parse)),
        Stream::Policy,
        Stream::Trust(word("soc.example", TrustDomain::parse)),
        Stream::Key(word("kid-1", KeyId::parse)),
        Stream::Freeze(FreezeScope::All),
        Stream::Freeze(FreezeScope::Agent(agent)),
        Stream::Freeze(FreezeScope::Owner(word("dana", PersonId::parse))),
        Stream::Freeze(FreezeScope::Action(word(
            "account.disable",
            ActionName::parse,
        ))),
    ]
}

#[test]
fn entries_golden() {
    let mut text = String::new();
    for (index, fact) in (0_u64..).zip(facts()) {
        let entry = Entry {
            v: 1,
            epoch: 0,
            index,
            at: Timestamp::from_millis(1_800_000_000_200),
            write_set: streams(),
            read_set: streams().into_iter().map(|s| (s, 7)).collect(),
            event: fact,
        };
        let line = entry.canonical().expect("canonical");
        assert_eq!(Entry::parse(&line).expect("reads back"), entry);
        assert!(
            Entry::parse(&line.replacen("\"v\":1", "\"v\":1,\"w\":2", 1)).is_err(),
            "an unknown member"
        );
        assert!(
            Entry::parse(&line.replacen("\"body\":{", "\"body\":{\"unknown\":1,", 1)).is_err(),
            "an unknown member of the body"
        );
        assert!(
            Entry::parse(&format!(" {line}")).is_err(),
            "a non-canonical form"
        );
        text.push_str(&line);
        text.push('\n');
    }
    golden("entries.jsonl", &text);
}

#[test]
fn action_digest_golden() {
    let (record, secret) = on_record();
    let text = format!(
        "{}\n{}\n{}\n{}\n",
        json::canonical(&action().to_json()).expect("canonical"),
        action().digest(),
        json::canonical_of(&record).expect("canonical"),
        secret.blob()
    );
    golden("action.txt", &text);
}

#[test]
fn vote_statement_golden() {
    let statement = VoteStatement {
        v: 1,
        realm: word("soc", Realm::parse),
        access_request_id: id(9, AccessRequestId::from_random),
        agent: word("triage", AgentId::parse),
        owner: word("dana", PersonId::parse),
        task: id(5, TaskId::from_random),
        task_key: Thumbprint(digest(8)),
        action: action().to_json(),
        max_ttl: 300,
        uses: Some(1),
        comment: None,
        policy: digest(3),
        profile: profile(),
        verdict: Verdict::Approve,
        not_after: 1_800_000_600,
        nonce: "AAAAAAAAAAAAAAAAAAAAAA".into(),
    };
    let text = statement.canonical().expect("canonical");
    assert_eq!(VoteStatement::parse(&text).expect("reads back"), statement);
    golden(
        "vote.txt",
        &format!("{text}\n{}\n", statement.digest().expect("digest")),
    );
}

#[test]
fn token_claims_golden() {
    let claims = claims_of(&issued(), 2, "https://broker.example");
    golden(
        "claims.json",
        &format!("{}\n", json::canonical_of(&claims).expect("canonical")),
    );
}

/// Names, numbers and types of every field: the schema that clients are compiled against.
#[test]
fn wire_schema_golden() {
    use prost::Message as _;
    use prost_types::field_descriptor_proto::{Label, Type};
    let set =
        prost_types::FileDescriptorSet::decode(dipylon_sdk::proto::DESCRIPTOR).expect("descriptor");
    let mut text = String::new();
    for file in set
        .file
        .iter()
        .filter(|f| f.package() == dipylon_sdk::proto::PACKAGE)
    {
        for message in &file.message_type {
            for field in &message.field {
                let repeated = if field.label() == Label::Repeated {
                    "repeated "
                } else {
                    ""
                };
                let optional = if field.proto3_optional() {
                    "optional "
                } else {
                    ""
                };
                let kind = match field.r#type() {
                    Type::Message | Type::Enum => field.type_name().to_owned(),
                    scalar => scalar
                        .as_str_name()
                        .trim_start_matches("TYPE_")
                        .to_lowercase(),
                };
                let line = format!(
                    "{}.{} = {} {repeated}{optional}{kind}\n",
                    message.name(),
                    field.name(),
                    field.number()
                );
                text.push_str(&line);
            }
        }
        for one in &file.enum_type {
            for value in &one.value {
                text.push_str(&format!(
                    "{}.{} = {}\n",
                    one.name(),
                    value.name(),
                    value.number()
                ));
            }
        }
        for service in &file.service {
            for method in &service.method {
                let stream = |yes: bool| if yes { "stream " } else { "" };
                text.push_str(&format!(
                    "{}.{}({}{}) -> {}{}\n",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type()
                ));
            }
        }
    }
    golden("wire.txt", &text);
}

#[test]
fn revocation_feed_golden() {
    let task = id(5, TaskId::from_random);
    let selectors = [
        Selector::Tasks(vec![task]),
        Selector::Tokens(vec![issued().jti]),
        Selector::Agent(word("triage", AgentId::parse)),
        Selector::Agents(vec![word("triage", AgentId::parse)]),
        Selector::Action(word("account.disable", ActionName::parse)),
        Selector::All,
    ];
    let mut text = String::new();
    for (index, selector) in (5_u64..).zip(selectors) {
        let event = FeedEvent {
            epoch: 1,
            index,
            prev: index.checked_sub(6).map(|_| index - 1),
            at: Timestamp::from_secs(1),
            selector,
        };
        text.push_str(&json::canonical_of(&event).expect("canonical"));
        text.push('\n');
    }
    golden("feed.jsonl", &text);
}
