//! What many records have in common, kept once: a million grants name a few agents, actions and rules.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::*;

/// Texts, evidence and actions that live records hold. Only the one writer folds, so nobody waits here.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Pools>);

#[derive(Debug, Default)]
struct Pools {
    words: Pool<Arc<str>, ()>,
    evidence: Pool<Digest, Arc<EvidenceFacts>>,
    actions: Pool<Digest, (Arc<ActionOnRecord>, Option<Arc<Action>>)>,
    rules: Pool<Arc<[RuleRef]>, ()>,
    kids: Pool<KeyId, Arc<[KeyId]>>,
}

impl Shared {
    /// The grant and its action in plain, with all that others have too in their memory. Equal to `f`.
    pub(super) fn grant(
        &self,
        f: &TokenIssued,
        secret: Option<&ActionSecret>,
    ) -> (TokenIssued, Option<Arc<Action>>) {
        let mut pools = self.lock();
        let evidence = pools.evidence(&f.evidence);
        let (record, action) = pools.action(&f.action, secret);
        let mut decision = f.decision.clone();
        decision.rules = pools.rules.same(&decision.rules);
        pools
            .rules
            .purge_if_grown(|rules, ()| Arc::strong_count(rules) > 1);
        let mut word = |text: &Arc<str>| pools.word(text);
        for bound in &mut decision.ttl.bounds {
            bound.by = word(&bound.by);
        }
        decision.ttl.bounds.shrink_to_fit();
        decision.input.binding = word(&decision.input.binding);
        let issued = TokenIssued {
            agent: f.agent.shared(&mut word),
            subject: f.subject.shared(&mut word),
            kid: f.kid.shared(&mut word),
            action: record,
            decision,
            evidence,
            ..f.clone()
        };
        (issued, action)
    }

    /// The one key that most grants were signed with.
    pub(super) fn kids(&self, kid: &KeyId) -> Arc<[KeyId]> {
        let mut pools = self.lock();
        if let Some(kept) = pools.kids.get(kid) {
            return kept.clone();
        }
        let kept: Arc<[KeyId]> = [kid.clone()].into();
        pools.kids.put(kid.clone(), kept.clone());
        kept
    }

    fn lock(&self) -> MutexGuard<'_, Pools> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pools {
    fn word(&mut self, text: &Arc<str>) -> Arc<str> {
        self.words
            .purge_if_grown(|text, ()| Arc::strong_count(text) > 1);
        self.words.same(text)
    }

    /// One for each showing of a piece of evidence: the same bytes shown again are verified at another moment.
    fn evidence(&mut self, facts: &Arc<EvidenceFacts>) -> Arc<EvidenceFacts> {
        let mut word = |text: &Arc<str>| self.words.same(text);
        let kept = match self.evidence.get(&facts.sha256) {
            Some(kept) if kept == facts => return kept.clone(),
            _ => Arc::new(EvidenceFacts {
                subject: facts.subject.shared(&mut word),
                kid: facts.kid.shared(&mut word),
                ..(**facts).clone()
            }),
        };
        self.evidence.put(facts.sha256, kept.clone());
        self.evidence
            .purge_if_grown(|_, facts| Arc::strong_count(facts) > 1);
        kept
    }

    /// An action without a secret is the same wherever its digest is; one with a secret has salts of its own.
    fn action(
        &mut self,
        record: &Arc<ActionOnRecord>,
        secret: Option<&ActionSecret>,
    ) -> (Arc<ActionOnRecord>, Option<Arc<Action>>) {
        if let Some((kept, action)) = self.actions.get(&record.digest)
            && kept == record
            && secret.is_none()
        {
            return (kept.clone(), action.clone());
        }
        let action = record.reopen(secret).ok().map(Arc::new);
        if secret.is_none() && action.is_some() {
            self.actions
                .put(record.digest, (record.clone(), action.clone()));
            self.actions
                .purge_if_grown(|_, (record, _)| Arc::strong_count(record) > 1);
        }
        (record.clone(), action)
    }
}

/// A map that forgets what nobody else holds, each time it has doubled.
#[derive(Debug)]
struct Pool<K, V> {
    kept: HashMap<K, V>,
    purge_at: usize,
}

impl<K, V> Default for Pool<K, V> {
    fn default() -> Self {
        Self {
            kept: HashMap::new(),
            purge_at: PURGE_MIN,
        }
    }
}

impl<K: Eq + Hash, V> Pool<K, V> {
    fn get(&self, key: &K) -> Option<&V> {
        self.kept.get(key)
    }

    fn put(&mut self, key: K, value: V) {
        self.kept.insert(key, value);
    }

    /// The key that is kept for this one.
    fn same(&mut self, key: &K) -> K
    where
        K: Clone,
        V: Default,
    {
        if let Some((kept, _)) = self.kept.get_key_value(key) {
            return kept.clone();
        }
        self.kept.insert(key.clone(), V::default());
        key.clone()
    }

    fn purge_if_grown(&mut self, mut held: impl FnMut(&K, &V) -> bool) {
        if self.kept.len() >= self.purge_at {
            self.kept.retain(|key, value| held(key, value));
            self.purge_at = PURGE_MIN.max(self.kept.len().saturating_mul(2));
        }
    }
}

/// Entries of a pool below which nothing is forgotten.
const PURGE_MIN: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(n: u8, agent: &str) -> TokenIssued {
        let word = |text: &str| Arc::<str>::from(text);
        let action = Action::new(
            ActionName::parse("case.read").expect("name"),
            Audience::parse("https://cases.example").expect("audience"),
            Target::parse("Case", "1").expect("target"),
            Default::default(),
        )
        .expect("action");
        TokenIssued {
            jti: TokenId::from_random([n; 16]),
            task: TaskId::from_random([1; 16]),
            agent: AgentId::parse(agent).expect("id"),
            subject: SpiffeId::parse("spiffe://soc.example/agent").expect("id"),
            idempotency_key: IdempotencyKey::parse(&format!("r-{n}")).expect("id"),
            asked_ttl: 300,
            reason: None,
            action: Arc::new(action.on_record(&Default::default(), &mut || [0; 16]).0),
            secret: None,
            iat: 1,
            exp: 2,
            kid: KeyId::parse("key").expect("kid"),
            cnf: Binding::Jkt(Thumbprint(Digest::of(b"key"))),
            uses: None,
            pos: 1,
            approval: None,
            consumed: None,
            decision: Decision {
                id: DecisionId::from_random([n; 16]),
                policy: Digest::of(b"policy"),
                rules: [RuleRef {
                    id: word("rule"),
                    file: word("rules/1.cedar"),
                }]
                .into(),
                needs: Vec::new(),
                ttl: TtlSum {
                    asked: 300,
                    bounds: vec![Bound {
                        by: word("cap"),
                        seconds: 900,
                    }],
                    granted: 300,
                },
                input: AskedInput {
                    ttl_ms: 300_000,
                    approvals: Vec::new(),
                    evidence_kind: EvidenceKind::JwtSvid,
                    evidence_age_ms: 0,
                    binding: word("jkt"),
                    task_age_ms: 0,
                    now: Timestamp::from_secs(1),
                },
            },
            evidence: Arc::new(EvidenceFacts {
                kind: EvidenceKind::JwtSvid,
                subject: SpiffeId::parse("spiffe://soc.example/agent").expect("id"),
                kid: KeyId::parse("svid").expect("kid"),
                sha256: Digest::of(b"evidence"),
                verified_at: Timestamp::from_secs(1),
                expires_at: Timestamp::from_secs(900),
            }),
        }
    }

    #[test]
    fn what_is_equal_is_kept_once_and_stays_equal() {
        let shared = Shared::default();
        let (one, two) = (issued(1, "triage"), issued(2, "triage"));
        let (kept_one, action_one) = shared.grant(&one, None);
        let (kept_two, action_two) = shared.grant(&two, None);
        assert_eq!((&kept_one, &kept_two), (&one, &two));
        assert!(Arc::ptr_eq(&kept_one.action, &kept_two.action));
        assert!(Arc::ptr_eq(&kept_one.evidence, &kept_two.evidence));
        assert!(Arc::ptr_eq(
            &action_one.expect("plain"),
            &action_two.expect("plain")
        ));
        let (a, b) = (&kept_one.decision, &kept_two.decision);
        assert!(Arc::ptr_eq(&a.rules, &b.rules));
        assert!(Arc::ptr_eq(&a.ttl.bounds[0].by, &b.ttl.bounds[0].by));
        // The same evidence verified at another moment is another fact.
        let mut later = issued(3, "other");
        later.evidence = Arc::new(EvidenceFacts {
            verified_at: Timestamp::from_secs(2),
            ..(*later.evidence).clone()
        });
        assert_eq!(shared.grant(&later, None).0, later);
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let shared = Shared::default();
        let held = shared.grant(&issued(1, "held"), None).0;
        for n in 0..2 * PURGE_MIN {
            drop(shared.grant(&issued(2, &format!("a-{n}")), None));
        }
        let words = &shared.lock().words.kept;
        assert!(words.len() <= PURGE_MIN + 16, "{}", words.len());
        assert!(words.contains_key(held.agent.as_str()));
    }
}
