//! Crash recovery: the real process is killed under load, twenty times; acknowledged work is never lost, and nothing that
//! ended becomes active again. Each kill follows a random amount of work; no assertion depends on timing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dipylon::audit::Checkpoint;
use dipylon_sdk::client::vote::ReviewedCard;
use dipylon_sdk::client::{
    AgentClient, ApproverClient, OpenTaskRequest, OperatorClient, TokenOutcome,
};
use dipylon_sdk::model::*;

use crate::support::broker_deployment::BrokerDeployment;
use crate::support::invariants;
use crate::support::served_broker::token_request;
use crate::support::{CASES, IDP, disable, rand_u64, read_case};

const ROUNDS: usize = 20;

/// Work that killed brokers had acknowledged.
#[derive(Default)]
struct Ledger {
    tokens: BTreeMap<TokenId, (TaskId, String)>,
    uses: BTreeSet<(TokenId, String)>,
    ended: BTreeSet<TaskId>,
    tasks: BTreeSet<TaskId>,
    votes: usize,
    rules: usize,
}

/// A deployment under load, and the work it acknowledged.
struct CrashLoad {
    deployment: BrokerDeployment,
    ledger: Mutex<Ledger>,
    stopping: AtomicBool,
    next: AtomicU64,
}

impl std::ops::Deref for CrashLoad {
    type Target = BrokerDeployment;

    fn deref(&self) -> &BrokerDeployment {
        &self.deployment
    }
}

impl CrashLoad {
    fn new(root: &Path) -> Self {
        Self {
            deployment: BrokerDeployment::new(root),
            ledger: Mutex::default(),
            stopping: AtomicBool::new(false),
            next: AtomicU64::new(0),
        }
    }

    /// Waits until this many more tokens, one more use and one more policy change are acknowledged. A round that times
    /// out goes on to the kill; the test fails at its end if there was no work at all.
    async fn wait_for_work(&self, tokens: u64) {
        let progress = || {
            let ledger = self.ledger.lock().expect("ledger");
            (ledger.tokens.len(), ledger.uses.len(), ledger.rules)
        };
        let (before, spent, changed) = progress();
        let enough = before + usize::try_from(tokens).expect("small");
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let (now, uses, rules) = progress();
            if now >= enough && uses > spent && rules > changed {
                return;
            }
        }
    }

    fn is_running(&self) -> bool {
        !self.stopping.load(Ordering::SeqCst)
    }

    fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.next.fetch_add(1, Ordering::SeqCst))
    }

    fn record(&self, write: impl FnOnce(&mut Ledger)) {
        write(&mut self.ledger.lock().expect("ledger"));
    }

    /// An agent that reads cases and completes its tasks.
    async fn reads(self: Arc<Self>) {
        let agent = AgentClient::new(self.endpoint(), self.evidence(), None);
        while self.is_running() {
            let opening = OpenTaskRequest {
                purpose: "load".into(),
                max_duration_s: 3_600,
                idempotency_key: None,
                heartbeat_s: None,
            };
            let Ok(task) = agent.open_task(&opening).await else {
                continue;
            };
            self.record(|l| {
                l.tasks.insert(task.id());
            });
            for _ in 0..3 {
                if let Ok(TokenOutcome::Token(token)) = task
                    .request_token(&token_request(read_case(), &self.name("r")))
                    .await
                {
                    let jwt = token.jwt().expose_secret().to_owned();
                    self.record(|l| {
                        l.tokens.insert(token.jti(), (task.id(), jwt));
                    });
                }
            }
            if task.complete(TaskOutcome::Succeeded).await.is_ok() {
                self.record(|l| {
                    l.ended.insert(task.id());
                });
            }
        }
    }

    /// An agent that needs an approval, an approver, and a resource server that consumes the token.
    async fn step_ups(self: Arc<Self>) {
        let agent = AgentClient::new(self.endpoint(), self.evidence(), None);
        let maria = ApproverClient::new(self.endpoint(), Arc::new(self.env.key_of("maria")));
        let idp = self.validator("idp", IDP).await;
        let realm = dipylon_sdk::model::Realm::parse("test").expect("realm");
        let profile = ProfileName::parse("one-security").expect("profile");
        // Requests left pending by the previous process would fill the pending limit.
        for left in maria.access_requests().await.unwrap_or_default() {
            let Ok(id) = AccessRequestId::parse(&left.access_request_id) else {
                continue;
            };
            let Ok(card) = maria.card(id).await else {
                continue;
            };
            let narrowing = Narrowing::default();
            let seen = ReviewedCard {
                card: &card,
                realm: &realm,
                profile: &profile,
                verdict: Verdict::Deny,
                narrowing,
                comment: None,
            };
            if maria.vote(&seen).await.is_ok() {
                self.record(|l| l.votes += 1);
            }
        }
        while self.is_running() {
            let opening = OpenTaskRequest {
                purpose: "load".into(),
                max_duration_s: 3_600,
                idempotency_key: None,
                heartbeat_s: None,
            };
            let Ok(task) = agent.open_task(&opening).await else {
                continue;
            };
            let ask = token_request(disable("ann"), &self.name("r"));
            let Ok(TokenOutcome::Pending(pending)) = task.request_token(&ask).await else {
                continue;
            };
            let Ok(card) = maria.card(pending.access_request_id()).await else {
                continue;
            };
            let narrowing = Narrowing::default();
            let seen = ReviewedCard {
                card: &card,
                realm: &realm,
                profile: &profile,
                verdict: Verdict::Approve,
                narrowing,
                comment: None,
            };
            if maria.vote(&seen).await.is_ok() {
                self.record(|l| l.votes += 1);
            }
            let Ok(TokenOutcome::Token(token)) = task.request_token(&ask).await else {
                continue;
            };
            let jwt = token.jwt().expose_secret().to_owned();
            self.record(|l| {
                l.tokens.insert(token.jti(), (task.id(), jwt));
            });
            let Some(idp) = &idp else { continue };
            let headers = token
                .headers("POST", "https://idp.soc.example/x")
                .expect("headers");
            let presented = dipylon_sdk::validator::PresentedToken {
                token: token.jwt().expose_secret(),
                dpop: Some(headers.dpop.expose_secret()),
                method: "POST",
                url: "https://idp.soc.example/x",
                openings: token.openings(),
            };
            let action = disable("ann");
            let require = dipylon_sdk::validator::RequiredAction {
                action: action.name,
                target: action.target,
                parameters: Some(action.parameters),
            };
            let use_id = self.name("use");
            if let Ok(admitted) = idp.check(&presented, &require).await
                && idp.consume(admitted, &use_id).await.is_ok()
            {
                self.record(|l| {
                    l.uses.insert((token.jti(), use_id));
                });
            }
        }
    }

    /// An operator who keeps applying equivalent policies.
    async fn rules(self: Arc<Self>) {
        let olga = OperatorClient::new(self.endpoint(), Arc::new(self.env.key_of("olga")));
        while self.is_running() {
            let files = self.env.policy_with("rules/20-guardrails.cedar", |t| {
                format!("{t}\n// {}\n", self.name("version"))
            });
            if olga.apply_policy_bundle(&files).await.is_ok() {
                self.record(|l| l.rules += 1);
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    /// Asserts that all acknowledged work is in the journal.
    fn check(&self, noted: Option<Checkpoint>) -> Checkpoint {
        let found = invariants::check_against(&self.root.join("data"), noted);
        let ledger = self.ledger.lock().expect("ledger");
        assert!(
            ledger.tokens.keys().all(|jti| found.tokens.contains(jti)),
            "an issued token has no grant"
        );
        assert!(
            ledger.tasks.iter().all(|task| found.tasks.contains(task)),
            "an acknowledged task is missing"
        );
        assert!(
            ledger.ended.iter().all(|task| found.ended.contains(task)),
            "an acknowledged task end is missing"
        );
        let spent = |(jti, use_id): &(TokenId, String)| {
            found
                .uses
                .get(jti)
                .is_some_and(|uses| uses.iter().any(|(_, u)| u.as_str() == use_id))
        };
        assert!(
            ledger.uses.iter().all(spent),
            "an acknowledged use is missing"
        );
        assert!(
            found.votes >= ledger.votes,
            "an acknowledged vote is missing"
        );
        assert!(
            found.policies > ledger.rules,
            "an acknowledged policy change is missing"
        );
        found.head
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigkill_under_load() {
    let temp = tempfile::tempdir().expect("dir");
    let realm = Arc::new(CrashLoad::new(temp.path()));
    let mut noted = None;
    for _ in 0..ROUNDS {
        let mut broker = realm.broker().await;
        realm.stopping.store(false, Ordering::SeqCst);
        let load = [
            tokio::spawn(realm.clone().reads()),
            tokio::spawn(realm.clone().reads()),
            tokio::spawn(realm.clone().step_ups()),
            tokio::spawn(realm.clone().rules()),
        ];
        realm.wait_for_work(rand_u64() % 12).await;
        broker.kill().await.expect("SIGKILL");
        realm.stopping.store(true, Ordering::SeqCst);
        for job in load {
            job.await.expect("joined");
        }
        noted = Some(realm.check(noted));
    }
    // One more start: nothing that ended is active again, and the rest still is.
    let mut broker = realm.broker().await;
    let cases = realm.validator("cases", CASES).await.expect("connects");
    let tokens: Vec<_> = realm
        .ledger
        .lock()
        .expect("ledger")
        .tokens
        .values()
        .cloned()
        .collect();
    let ended = realm.ledger.lock().expect("ledger").ended.clone();
    let (mut inactive, mut live) = (0, 0);
    for (task, jwt) in tokens {
        let active = cases.introspect(&jwt).await.expect("may ask").active;
        assert!(
            !(active && ended.contains(&task)),
            "a token of an ended task is active again"
        );
        if active { live += 1 } else { inactive += 1 }
    }
    broker.kill().await.expect("SIGKILL");
    let ledger = realm.ledger.lock().expect("ledger");
    eprintln!(
        "{} tokens ({live} live, {inactive} inactive), {} tasks, {} ends, {} votes, {} uses, {} rule changes over {ROUNDS} kills",
        ledger.tokens.len(),
        ledger.tasks.len(),
        ledger.ended.len(),
        ledger.votes,
        ledger.uses.len(),
        ledger.rules
    );
    // A run without work would prove nothing.
    assert!(inactive > 20 && ledger.votes > 0 && !ledger.uses.is_empty() && ledger.rules > 0);
}
