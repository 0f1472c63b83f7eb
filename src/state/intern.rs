//! Interning: equal strings, evidence, actions and rule lists of records are stored once, since a million grants name few.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::*;

/// The values that live records share. Only the journal's writer interns, so its lock is never contended.
#[derive(Debug, Default)]
pub(super) struct Interner(Mutex<Pools>);

#[derive(Debug, Default)]
struct Pools {
    texts: Pool<Arc<str>, ()>,
    evidence: Pool<Digest, Arc<EvidenceFacts>>,
    actions: Pool<Digest, (Arc<ActionOnRecord>, Option<Arc<Action>>)>,
    rules: Pool<Arc<[RuleRef]>, ()>,
    kids: Pool<KeyId, Arc<[KeyId]>>,
}

impl Interner {
    /// The grant, equal to `f`, and its plain action, with every shareable part interned.
    pub(super) fn intern_grant(
        &self,
        f: &TokenIssued,
        secret: Option<&ActionSecret>,
    ) -> (TokenIssued, Option<Arc<Action>>) {
        let mut pools = self.lock();
        let evidence = pools.evidence(&f.evidence);
        let (record, action) = pools.action(&f.action, secret);
        let mut decision = f.decision.clone();
        decision.rules = pools.rules.intern(&decision.rules);
        pools
            .rules
            .purge_if_grown(|rules, ()| Arc::strong_count(rules) > 1);
        let mut intern = |text: &Arc<str>| pools.intern_str(text);
        for limit in &mut decision.ttl.limits {
            limit.source = intern(&limit.source);
        }
        decision.ttl.limits.shrink_to_fit();
        decision.input.binding = intern(&decision.input.binding);
        let issued = TokenIssued {
            agent: f.agent.interned(&mut intern),
            subject: f.subject.interned(&mut intern),
            kid: f.kid.interned(&mut intern),
            action: record,
            decision,
            evidence,
            ..f.clone()
        };
        (issued, action)
    }

    /// The list of this one key: what most grants were signed with.
    pub(super) fn intern_kids(&self, kid: &KeyId) -> Arc<[KeyId]> {
        let mut pools = self.lock();
        if let Some(kept) = pools.kids.get(kid) {
            return kept.clone();
        }
        let kept: Arc<[KeyId]> = [kid.clone()].into();
        pools.kids.insert(kid.clone(), kept.clone());
        kept
    }

    fn lock(&self) -> MutexGuard<'_, Pools> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pools {
    fn intern_str(&mut self, text: &Arc<str>) -> Arc<str> {
        self.texts
            .purge_if_grown(|text, ()| Arc::strong_count(text) > 1);
        self.texts.intern(text)
    }

    /// Shared only between equal facts: the same evidence presented again has another `verified_at`.
    fn evidence(&mut self, facts: &Arc<EvidenceFacts>) -> Arc<EvidenceFacts> {
        let mut intern = |text: &Arc<str>| self.texts.intern(text);
        let kept = match self.evidence.get(&facts.sha256) {
            Some(kept) if kept == facts => return kept.clone(),
            _ => Arc::new(EvidenceFacts {
                subject: facts.subject.interned(&mut intern),
                kid: facts.kid.interned(&mut intern),
                ..(**facts).clone()
            }),
        };
        self.evidence.insert(facts.sha256, kept.clone());
        self.evidence
            .purge_if_grown(|_, facts| Arc::strong_count(facts) > 1);
        kept
    }

    /// Shared by digest, without a sensitive part only: a sensitive part has salts of its own.
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
                .insert(record.digest, (record.clone(), action.clone()));
            self.actions
                .purge_if_grown(|_, (record, _)| Arc::strong_count(record) > 1);
        }
        (record.clone(), action)
    }
}

/// A map of shared values that drops unreferenced ones each time it has doubled.
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

    fn insert(&mut self, key: K, value: V) {
        self.kept.insert(key, value);
    }

    /// The stored key equal to this one, which is stored if there is none.
    fn intern(&mut self, key: &K) -> K
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

/// Entries of a pool below which none is dropped.
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
            requested_ttl: 300,
            reason: None,
            action: Arc::new(action.on_record(&Default::default(), &mut || [0; 16]).0),
            secret: None,
            iat: 1,
            exp: 2,
            kid: KeyId::parse("key").expect("kid"),
            cnf: Binding::Jkt(Thumbprint(Digest::sha256(b"key"))),
            uses: None,
            pos: 1,
            approval: None,
            consumed: None,
            decision: DecisionRecord {
                id: DecisionId::from_random([n; 16]),
                policy: Digest::sha256(b"policy"),
                rules: [RuleRef {
                    id: word("rule"),
                    file: word("rules/1.cedar"),
                }]
                .into(),
                required_profiles: Vec::new(),
                delay: None,
                ttl: TtlBreakdown {
                    requested: 300,
                    limits: vec![TtlLimit {
                        source: word("cap"),
                        seconds: 900,
                    }],
                    granted: 300,
                },
                input: PolicyInput {
                    executor: None,
                    facts: FactValues::new(),
                    counts: CountValues::new(),
                    waited_ms: 0,
                    recommender_counts: CountValues::new(),
                    ttl_ms: 300_000,
                    approvals: Vec::new(),
                    evidence_kind: EvidenceKind::JwtSvid,
                    evidence_issued_age_ms: 0,
                    evidence_verified_age_ms: 0,
                    binding: word("jkt"),
                    task_age_ms: 0,
                    now: Timestamp::from_secs(1),
                },
            },
            evidence: Arc::new(EvidenceFacts {
                kind: EvidenceKind::JwtSvid,
                subject: SpiffeId::parse("spiffe://soc.example/agent").expect("id"),
                kid: KeyId::parse("svid").expect("kid"),
                sha256: Digest::sha256(b"evidence"),
                issued_at: Some(Timestamp::from_secs(1)),
                verified_at: Timestamp::from_secs(1),
                expires_at: Timestamp::from_secs(900),
            }),
        }
    }

    #[test]
    fn interning_preserves_equality() {
        let interner = Interner::default();
        let (one, two) = (issued(1, "triage"), issued(2, "triage"));
        let (kept_one, action_one) = interner.intern_grant(&one, None);
        let (kept_two, action_two) = interner.intern_grant(&two, None);
        assert_eq!((&kept_one, &kept_two), (&one, &two));
        assert!(Arc::ptr_eq(&kept_one.action, &kept_two.action));
        assert!(Arc::ptr_eq(&kept_one.evidence, &kept_two.evidence));
        assert!(Arc::ptr_eq(
            &action_one.expect("plain"),
            &action_two.expect("plain")
        ));
        let (a, b) = (&kept_one.decision, &kept_two.decision);
        assert!(Arc::ptr_eq(&a.rules, &b.rules));
        assert!(Arc::ptr_eq(
            &a.ttl.limits[0].source,
            &b.ttl.limits[0].source
        ));
        // The same evidence verified at another time is not equal.
        let mut later = issued(3, "other");
        later.evidence = Arc::new(EvidenceFacts {
            verified_at: Timestamp::from_secs(2),
            ..(*later.evidence).clone()
        });
        assert_eq!(interner.intern_grant(&later, None).0, later);
    }

    #[test]
    fn interner_purges_unused() {
        let interner = Interner::default();
        let held = interner.intern_grant(&issued(1, "held"), None).0;
        for n in 0..2 * PURGE_MIN {
            drop(interner.intern_grant(&issued(2, &format!("a-{n}")), None));
        }
        let texts = &interner.lock().texts.kept;
        assert!(texts.len() <= PURGE_MIN + 16, "{}", texts.len());
        assert!(texts.contains_key(held.agent.as_str()));
    }
}
