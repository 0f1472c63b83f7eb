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

/// The action of a proposal of a policy bundle.
fn proposal_on_record() -> ActionOnRecord {
    let proposed = Action::new(
        word(POLICY_APPLY, ActionName::parse),
        word("https://broker.soc.example", Audience::parse),
        Target::parse("PolicyBundle", &digest(21).to_string()).expect("target"),
        BTreeMap::new(),
    );
    let none = BTreeSet::new();
    proposed
        .expect("action")
        .on_record(&none, &mut || [0; 16])
        .0
}

fn evidence() -> EvidenceFacts {
    EvidenceFacts {
        kind: EvidenceKind::JwtSvid,
        subject: word("spiffe://soc.example/agent/triage", SpiffeId::parse),
        kid: word("k-1", KeyId::parse),
        sha256: digest(1),
        issued_at: Some(Timestamp::from_secs(1_799_999_985)),
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
        delay: None,
        ttl: TtlBreakdown {
            requested: 900,
            limits: vec![TtlLimit {
                source: "cap".into(),
                seconds: 600,
            }],
            granted: 600,
        },
        input: PolicyInput {
            facts: FactValues::new(),
            counts: CountValues::new(),
            waited_ms: 0,
            recommender_counts: CountValues::new(),
            ttl_ms: 600_000,
            approvals: vec![profile().name],
            evidence_kind: EvidenceKind::JwtSvid,
            evidence_issued_age_ms: 15_140,
            evidence_verified_age_ms: 17,
            binding: "jkt".into(),
            task_age_ms: 99,
            now: Timestamp::from_millis(1_800_000_000_140),
            executor: None,
        },
    }
}

fn fact_proposal() -> Proposed {
    Proposed::Fact {
        fact: word("incident", FactName::parse),
        value: true,
        seconds: Some(3_600),
        declared: digest(26),
    }
}

fn fact_on_record() -> ActionOnRecord {
    let action = proposal_action(&digest(3), &fact_proposal()).expect("action");
    action.on_record(&BTreeSet::new(), &mut || [0; 16]).0
}

/// The decision about what an advisory agent recommends.
fn recommended() -> DecisionRecord {
    let mut decision = decision();
    decision.input.executor = Some(word("responder", AgentId::parse));
    decision
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
        key_identity: KeyIdentity(digest(19)),
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
            proposal: Some(access_request),
            version: digest(3),
            by: Some(person.clone()),
            recovery: None,
            returning: [word("lee", PersonId::parse)].into(),
        }),
        Event::PolicyApplied(PolicyApplied {
            proposal: None,
            version: digest(3),
            by: None,
            recovery: Some(OperatorRecovery {
                reason: word("no operator has a key", RecoveryReason::parse),
                host_user: HostUser::claimed(1_000, Some("ann"), Some("bob")),
                operators_lost: true,
            }),
            returning: [].into(),
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
            waiting: Some(id(9, AccessRequestId::from_random)),
            evidence: evidence(),
        }),
        Event::AccessRequestOpened(AccessRequestOpened {
            access_request,
            requester: AccessRequester::Agent(Box::new(AgentRequester {
                task,
                agent: agent.clone(),
                owner: word("dana", PersonId::parse),
                idempotency_key: word("r-1", IdempotencyKey::parse),
                decision: decision(),
                evidence: evidence(),
                executor: None,
            })),
            action: on_record().0,
            secret: Some(digest(7)),
            reason: Some(digest(6)),
            max_ttl: Some(600),
            uses: Some(1),
            expires_at: Timestamp::from_millis(1_800_000_900_140),
        }),
        Event::AccessRequestOpened(AccessRequestOpened {
            access_request,
            requester: AccessRequester::Agent(Box::new(AgentRequester {
                task,
                agent: word("assistant", AgentId::parse),
                owner: word("olga", PersonId::parse),
                idempotency_key: word("r-1", IdempotencyKey::parse),
                decision: recommended(),
                evidence: evidence(),
                executor: Some(Executor {
                    agent: word("responder", AgentId::parse),
                    owner: word("maria", PersonId::parse),
                }),
            })),
            action: on_record().0,
            secret: None,
            reason: None,
            max_ttl: Some(600),
            uses: None,
            expires_at: Timestamp::from_millis(1_800_000_900_140),
        }),
        Event::AccessRequestOpened(AccessRequestOpened {
            access_request,
            requester: AccessRequester::Person(Box::new(PersonRequester {
                person: person.clone(),
                key: Thumbprint(digest(8)),
                replaces: digest(3),
                proposed: Proposed::Bundle {
                    bundle: digest(21),
                    returning: [word("lee", PersonId::parse)].into(),
                },
                changes: digest(22),
                needs: profile(),
            })),
            action: proposal_on_record(),
            secret: None,
            reason: None,
            max_ttl: None,
            uses: None,
            expires_at: Timestamp::from_millis(1_800_000_900_140),
        }),
        Event::AccessRequestOpened(AccessRequestOpened {
            access_request,
            requester: AccessRequester::Person(Box::new(PersonRequester {
                person: person.clone(),
                key: Thumbprint(digest(8)),
                replaces: digest(3),
                proposed: fact_proposal(),
                changes: digest(22),
                needs: profile(),
            })),
            action: fact_on_record(),
            secret: None,
            reason: Some(digest(27)),
            max_ttl: None,
            uses: None,
            expires_at: Timestamp::from_millis(1_800_000_900_140),
        }),
        Event::AccessRequestReassessed(AccessRequestReassessed {
            access_request,
            decision: decision(),
        }),
        Event::VoteCast(VoteCast {
            access_request,
            voter: word("maria", PersonId::parse),
            key: Thumbprint(digest(13)),
            verdict: Verdict::Approve,
            profile: profile(),
            facts: digest(23),
            max_ttl: Some(300),
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
            facts: digest(23),
            max_ttl: Some(300),
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
            by_key: Thumbprint(digest(8)),
        }),
        Event::ApproverEnrolled(ApproverEnrolled {
            person: word("lee", PersonId::parse),
            invitation: id(18, InvitationId::from_random),
            passkey: PasskeyOnRecord {
                credential: "Y3JlZA".into(),
                key: Thumbprint(digest(16)),
                key_identity: KeyIdentity(digest(20)),
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
            all: false,
            cause: RevokeCause::Operator,
            by: Some(person.clone()),
            invited: 1,
            unconfirmed: 0,
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
        Event::FactSet(FactSet {
            fact: word("incident", FactName::parse),
            value: true,
            until: Some(Timestamp::from_millis(1_800_003_600_000)),
            declared: digest(26),
            by: person.clone(),
            reason: None,
            proposal: Some(access_request),
        }),
        Event::FactSet(FactSet {
            fact: word("incident", FactName::parse),
            value: false,
            until: None,
            declared: digest(26),
            by: person.clone(),
            reason: Some(digest(27)),
            proposal: None,
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
        Event::PasskeyConfirmed(PasskeyConfirmed {
            person: word("lee", PersonId::parse),
            key: Thumbprint(digest(16)),
            by: Confirmer::Person {
                id: person.clone(),
                key: Thumbprint(digest(8)),
            },
        }),
        Event::PasskeyConfirmed(PasskeyConfirmed {
            person: word("lee", PersonId::parse),
            key: Thumbprint(digest(16)),
            by: Confirmer::Host {
                user: HostUser::claimed(0, Some("root"), Some("olga")),
            },
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
            by: person.clone(),
            reason: Some(digest(11)),
        }),
        Event::Frozen(Frozen {
            scope: FreezeScope::Action(word("account.disable", ActionName::parse)),
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
            | Event::FactSet(_)
            | Event::TaskOpened(_)
            | Event::LeasesExtended(_)
            | Event::TaskEnded(_)
            | Event::RequestDenied(_)
            | Event::AccessRequestOpened(_)
            | Event::AccessRequestReassessed(_)
            | Event::VoteCast(_)
            | Event::VoteRefused(_)
            | Event::AccessRequestClosed(_)
            | Event::ApproverInvited(_)
            | Event::ApproverEnrolled(_)
            | Event::PasskeyConfirmed(_)
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

/// Every kind of stream, as the samples name it.
fn streams() -> Vec<Stream> {
    let (task, agent) = (id(5, TaskId::from_random), word("triage", AgentId::parse));
    let access_request = id(9, AccessRequestId::from_random);
    let voter = word("dana", PersonId::parse);
    let action = on_record().0;
    let all = vec![
        Stream::Task(task),
        Stream::Lease(task),
        Stream::open_task(
            agent.clone(),
            Thumbprint(digest(8)),
            word("open-1", IdempotencyKey::parse),
        ),
        Stream::TokenRequest(task, word("r-1", IdempotencyKey::parse)),
        Stream::AccessRequest(access_request),
        Stream::refused_vote(access_request, voter.clone(), "owns the agent"),
        Stream::task_action(task, &action.action, &action.target),
        Stream::Denials(agent.clone()),
        Stream::Token(id(4, TokenId::from_random)),
        Stream::Agent(agent.clone()),
        Stream::Person(voter.clone()),
        Stream::Proposals(voter.clone()),
        Stream::Invitation(voter.clone()),
        Stream::Credentials,
        Stream::EnrolledKey(KeyIdentity(digest(20))),
        Stream::Credential("Y3JlZA".into()),
        Stream::Policy,
        Stream::Trust(word("soc.example", TrustDomain::parse)),
        Stream::Key(word("kid-1", KeyId::parse)),
        Stream::Freeze(FreezeScope::All),
        Stream::Freeze(FreezeScope::Agent(agent)),
        Stream::Freeze(FreezeScope::Owner(voter)),
        Stream::Freeze(FreezeScope::Action(action.action)),
        Stream::Fact(word("incident", FactName::parse)),
        Stream::Count(Box::new(
            CountKey::parse("deletions/agent:triage/action:account.delete").expect("key"),
        )),
        Stream::Count(Box::new(CountKey::parse("deletions").expect("key"))),
    ];
    for stream in &all {
        match stream {
            Stream::Task(_)
            | Stream::Lease(_)
            | Stream::OpenTask(_)
            | Stream::TokenRequest(..)
            | Stream::AccessRequest(_)
            | Stream::Proposals(_)
            | Stream::RefusedVote(_)
            | Stream::TaskAction(_)
            | Stream::Denials(_)
            | Stream::Token(_)
            | Stream::Agent(_)
            | Stream::Person(_)
            | Stream::Invitation(_)
            | Stream::Credentials
            | Stream::EnrolledKey(_)
            | Stream::Credential(_)
            | Stream::Policy
            | Stream::Trust(_)
            | Stream::Key(_)
            | Stream::Freeze(_)
            | Stream::Fact(_)
            | Stream::Count(_) => {}
        }
    }
    all
}

/// What a sample advances, rests on and claims: as the broker would write it, the versions apart.
fn sets(event: &Event) -> (Vec<Stream>, Vec<Stream>, Vec<Claim>) {
    let (task, agent) = (id(5, TaskId::from_random), word("triage", AgentId::parse));
    let owner = word("dana", PersonId::parse);
    let access_request = id(9, AccessRequestId::from_random);
    let token = Stream::Token(issued().jti);
    let request = Stream::TokenRequest(task, word("r-1", IdempotencyKey::parse));
    let trust = Stream::Trust(word("soc.example", TrustDomain::parse));
    let kid = Stream::Key(word("kid-1", KeyId::parse));
    let freeze = |scope| Stream::Freeze(scope);
    let of_key = Stream::EnrolledKey(KeyIdentity(digest(19)));
    let action = on_record().0;
    let of_action = freeze(FreezeScope::Action(action.action.clone()));
    let person = |id: &str| Stream::Person(word(id, PersonId::parse));
    let invitation = Stream::Invitation(word("lee", PersonId::parse));
    let author = |id: &str| vec![Stream::Policy, person(id)];
    let agent_in_force = vec![
        Stream::Policy,
        Stream::Agent(agent.clone()),
        freeze(FreezeScope::All),
        freeze(FreezeScope::Agent(agent.clone())),
        freeze(FreezeScope::Owner(owner.clone())),
    ];
    let with = |base: &[Stream], more: &[&Stream]| {
        let more = more.iter().map(|stream| (*stream).clone());
        base.iter().cloned().chain(more).collect::<Vec<_>>()
    };
    let of_task = with(&agent_in_force, &[&Stream::Task(task)]);
    let (lease, one) = (Stream::Lease(task), Stream::Task(task));
    let claim = |counter, ceiling| Claim { counter, ceiling };
    let (advances, reads, claims): (Vec<Stream>, Vec<Stream>, Vec<Claim>) = match event {
        Event::EpochStarted(_) | Event::RefusalsCounted(_) => (vec![], vec![], vec![]),
        Event::TrustBundleChanged(_) => (vec![trust], vec![], vec![]),
        Event::KeyPublished(_) => (vec![kid], vec![], vec![]),
        Event::PolicyApplied(f) => (
            [Stream::Policy]
                .into_iter()
                .chain(f.proposal.map(Stream::AccessRequest))
                .collect(),
            [Stream::Credentials]
                .into_iter()
                .chain(f.by.clone().map(Stream::Person))
                .collect(),
            vec![],
        ),
        Event::AgentSuspended(f) => (
            vec![Stream::Agent(agent)],
            vec![Stream::Policy, Stream::Person(f.by.clone())],
            vec![],
        ),
        Event::AgentResumed(_) => (vec![Stream::Agent(agent)], author("olga"), vec![]),
        Event::Frozen(f) => (vec![freeze(f.scope.clone())], author("olga"), vec![]),
        Event::Unfrozen(f) => (vec![freeze(f.scope.clone())], author("olga"), vec![]),
        Event::FactSet(f) => (
            [Stream::Fact(f.fact.clone())]
                .into_iter()
                .chain(f.proposal.map(Stream::AccessRequest))
                .collect(),
            with(&author("olga"), &[&Stream::Credentials]),
            vec![],
        ),
        Event::TaskOpened(f) => {
            let key = f.binding.jkt();
            let opened = Stream::open_task(f.agent.clone(), key, f.idempotency_key.clone());
            (
                vec![one, opened],
                with(
                    &agent_in_force,
                    &[&trust, &Stream::EnrolledKey(f.key_identity)],
                ),
                vec![claim(Counter::OpenTasks(agent), 1_000)],
            )
        }
        Event::LeasesExtended(_) => (vec![lease], of_task, vec![]),
        Event::TaskEnded(_) => (vec![one], agent_in_force, vec![]),
        Event::RequestDenied(_) => (vec![request], with(&of_task, &[&trust]), vec![]),
        Event::AccessRequestReassessed(_) => (
            vec![Stream::AccessRequest(access_request)],
            with(&of_task, &[&of_action]),
            vec![],
        ),
        Event::AccessRequestOpened(f) if f.by_person().is_some() => (
            vec![
                Stream::AccessRequest(access_request),
                Stream::Proposals(word("olga", PersonId::parse)),
            ],
            with(&author("olga"), &[&Stream::Credentials]),
            vec![claim(
                Counter::OwnerPendingRequests(word("olga", PersonId::parse)),
                20,
            )],
        ),
        Event::AccessRequestOpened(_) => (
            vec![
                Stream::AccessRequest(access_request),
                Stream::task_action(task, &action.action, &action.target),
                request,
            ],
            with(
                &of_task,
                &[
                    &trust,
                    &of_action,
                    &Stream::Credentials,
                    &Stream::Denials(agent.clone()),
                ],
            ),
            vec![
                claim(Counter::PendingRequests(agent.clone()), 5),
                claim(Counter::OwnerPendingRequests(owner), 20),
                claim(Counter::Openings(agent), 30),
            ],
        ),
        Event::VoteCast(f) => {
            let denies = (f.verdict == Verdict::Deny).then_some(Stream::Denials(agent));
            (
                [Stream::AccessRequest(access_request)]
                    .into_iter()
                    .chain(denies)
                    .collect(),
                with(&of_task, &[&of_action, &Stream::Person(f.voter.clone())]),
                vec![],
            )
        }
        Event::VoteRefused(f) => (
            vec![Stream::refused_vote(
                f.access_request,
                f.voter.clone(),
                &f.reason,
            )],
            with(&of_task, &[&Stream::AccessRequest(access_request)]),
            vec![],
        ),
        Event::AccessRequestClosed(_) => (
            vec![Stream::AccessRequest(access_request)],
            with(&of_task, &[&of_action]),
            vec![],
        ),
        Event::ApproverInvited(_) => (
            vec![invitation],
            with(&author("olga"), &[&person("lee")]),
            vec![],
        ),
        Event::ApproverEnrolled(f) => (
            vec![
                person("lee"),
                invitation,
                Stream::Credentials,
                Stream::EnrolledKey(f.passkey.key_identity),
                Stream::Credential(f.passkey.credential.as_str().into()),
            ],
            author("olga"),
            vec![],
        ),
        Event::PasskeyConfirmed(f) => (
            vec![person("lee"), Stream::Credentials],
            match f.by {
                Confirmer::Person { .. } => author("olga"),
                Confirmer::Host { .. } => vec![Stream::Policy],
            },
            vec![],
        ),
        Event::ApproverKeysRevoked(_) => (
            vec![person("lee"), Stream::Credentials, person("maria")],
            author("olga"),
            vec![],
        ),
        Event::TokenIssued(_) => (
            vec![request, token, Stream::AccessRequest(access_request)],
            with(
                &of_task,
                &[&trust, &of_action, &kid, &of_key, &person("maria")],
            ),
            vec![],
        ),
        Event::TokenReissued(_) => (
            vec![token],
            with(
                &of_task,
                &[
                    &trust,
                    &of_action,
                    &kid,
                    &of_key,
                    &Stream::AccessRequest(access_request),
                    &person("maria"),
                ],
            ),
            vec![],
        ),
        Event::TokenConsumed(_) => (vec![token], with(&of_task, &[&trust, &of_action]), vec![]),
        Event::GrantsEnded(f) => {
            let by = f.by.as_ref().map(|_| person("olga"));
            let reads: Vec<_> = [&of_action, &trust].into_iter().chain(&by).collect();
            (vec![token], with(&of_task, &reads), vec![])
        }
    };
    (advances, reads, claims)
}

/// A stream has one written form.
#[test]
fn streams_golden() {
    let mut text = String::new();
    for stream in streams() {
        let written = stream.to_string();
        assert_eq!(Stream::parse(&written).expect("reads back"), stream);
        assert!(written.starts_with(stream.kind()), "{written}");
        text.push_str(&written);
        text.push('\n');
    }
    golden("streams.txt", &text);
}

#[test]
fn entries_golden() {
    let mut text = String::new();
    for (index, fact) in (0_u64..).zip(facts()) {
        let (advances, reads, claims) = sets(&fact);
        let entry = Entry {
            v: ENTRY_FORM,
            epoch: 0,
            index,
            at: Timestamp::from_millis(1_800_000_000_200),
            write_set: advances.into_iter().map(|s| (s, 0)).collect(),
            read_set: reads.into_iter().map(|s| (s, 7)).collect(),
            claims,
            event: fact,
        };
        let line = entry.canonical().expect("canonical");
        assert_eq!(Entry::parse(&line).expect("reads back"), entry);
        assert!(
            Entry::parse(&line.replacen("\"v\":2", "\"v\":2,\"w\":2", 1)).is_err(),
            "an unknown member"
        );
        let older = Entry::parse(&line.replacen("\"v\":2", "\"v\":1", 1));
        assert!(
            matches!(older, Err(json::JsonError::Form(1))),
            "another form: {older:?}"
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
        v: VOTE_STATEMENT_FORM,
        realm: word("soc", Realm::parse),
        access_request_id: id(9, AccessRequestId::from_random),
        requester: StatementRequester::Agent {
            id: word("triage", AgentId::parse),
            owner: word("dana", PersonId::parse),
            task: id(5, TaskId::from_random),
            task_key: Thumbprint(digest(8)),
        },
        action: on_record().0,
        facts: digest(23),
        max_ttl: Some(300),
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
